//! The data sets: who sees which digits, photographs and prompts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use image::RgbImage;
use qvl::train::rng::Stream;
use serde_json::{Value, json};

use crate::{
    glyph::{self, Glyph},
    picture::{self, Picture, Placed},
};

const PHOTOS: [&str; 6] =
    ["astronaut.png", "chelsea.png", "china.jpg", "coffee.png", "flower.jpg", "rocket.jpg"];
const OTHER_PHOTOS: [&str; 6] = [
    "brick.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
];
/// Share of pictures with two digits.
const TWO: f64 = 0.0;

/// Digits and photographs of the packages.
pub(crate) struct Source {
    uci: glyph::Split,
    mnist: Vec<Glyph>,
    photos: Vec<RgbImage>,
    other_photos: Vec<RgbImage>,
}

/// Pictures of each kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub base: usize,
    pub train: usize,
    pub eval: usize,
}

impl Source {
    /// Reads the folder that `fetch` fills.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let photos = |names: &[&str]| {
            let open = |name: &&str| {
                let path = folder.join(name);
                let photo = image::open(&path)
                    .with_context(|| format!("failed to read {}", path.display()))?;
                anyhow::Ok(photo.to_rgb8())
            };
            names.iter().map(open).collect::<anyhow::Result<Vec<_>>>()
        };
        Ok(Source {
            uci: glyph::uci(&folder.join("digits.csv.gz"))?,
            mnist: glyph::mnist(folder)?,
            photos: photos(&PHOTOS)?,
            other_photos: photos(&OTHER_PHOTOS)?,
        })
    }
}

/// Writes all sets below `out`.
pub(crate) fn write(source: &Source, out: &Path, seed: u64, counts: Counts) -> anyhow::Result<()> {
    let stream = Stream::new(seed);
    let (uci, photos) = (&source.uci, &source.photos[..]);
    if 0 < counts.base {
        let base = Set::draw("base", &uci.train, photos, counts.base, stream, out)?;
        base.write("base.json", base_sample)?;
        let held_out = Set::draw("base_held_out", &uci.held_out, photos, counts.eval, stream, out)?;
        held_out.write("base_held_out.json", ground)?;
    }
    let chat = [
        ("train", &uci.train[..], photos, counts.train),
        ("held_out", &uci.held_out[..], photos, counts.eval),
        ("shifted", &source.mnist[..], &source.other_photos[..], counts.eval),
    ];
    for (name, glyphs, photos, count) in chat {
        let set = Set::draw(name, glyphs, photos, count, stream, out)?;
        set.write(&format!("{name}_grounding.json"), chat_grounding)?;
        set.write(&format!("{name}_caption.json"), chat_caption)?;
        if name == "held_out" || name == "shifted" {
            // The base's own prompt on the same pictures: what the fine-tune starts from.
            set.write(&format!("{name}_base_prompt.json"), ground)?;
        }
    }
    Ok(())
}

struct Set {
    folder: PathBuf,
    pictures: Vec<(String, Vec<Placed>, u64)>,
}

impl Set {
    fn draw(
        name: &str,
        glyphs: &[Glyph],
        photos: &[RgbImage],
        count: usize,
        stream: Stream,
        out: &Path,
    ) -> anyhow::Result<Self> {
        let stream = stream.named(name);
        fs::create_dir_all(out.join("pictures").join(name))?;
        let mut pictures = Vec::with_capacity(count);
        for i in 0..count as u64 {
            let stream = stream.child(i);
            let first = &glyphs[stream.below(0, glyphs.len())];
            let mut chosen = vec![first];
            let second = &glyphs[stream.below(1, glyphs.len())];
            if stream.uniform(2) < TWO && second.label != first.label {
                chosen.push(second);
            }
            let Picture { image, digits } = picture::compose(photos, &chosen, stream);
            let path = format!("pictures/{name}/{i:05}.png");
            image.save(out.join(&path))?;
            pictures.push((path, digits, stream.bits(3)));
        }
        Ok(Set { folder: out.to_owned(), pictures })
    }

    fn write(
        &self,
        name: &str,
        sample: impl Fn(&Described, usize) -> (String, String),
    ) -> anyhow::Result<()> {
        let samples: Vec<Value> = self
            .pictures
            .iter()
            .enumerate()
            .map(|(i, (path, digits, random))| {
                let picture = Described { path, digits, random: *random };
                let (question, answer) = sample(&picture, i);
                json!({"id": format!("{}-{i}", name.trim_end_matches(".json")), "conversations": [
                    {"from": "user", "value": question}, {"from": "assistant", "value": answer}]})
            })
            .collect();
        let path = self.folder.join(name);
        fs::write(&path, serde_json::to_string_pretty(&samples)? + "\n")
            .with_context(|| format!("failed to write {}", path.display()))
    }
}

struct Described<'a> {
    path: &'a str,
    digits: &'a [Placed],
    random: u64,
}

impl Described<'_> {
    fn asked(&self) -> &Placed {
        &self.digits[usize::from(1 < self.digits.len() && self.random & 1 == 1)]
    }
}

/// Eight of ten pictures teach the base to point, two to read.
fn base_sample(picture: &Described, i: usize) -> (String, String) {
    if i % 10 < 8 { ground(picture, i) } else { read(picture) }
}

/// The base's prompts are bare, and its coordinates have three digits always.
fn ground(picture: &Described, _i: usize) -> (String, String) {
    let digit = picture.asked();
    let [x1, y1, x2, y2] = digit.thousandths;
    let question = format!("<img>{}</img>ground {}:", picture.path, digit.label);
    (question, format!("({x1:03},{y1:03}),({x2:03},{y2:03})"))
}

fn read(picture: &Described) -> (String, String) {
    let words: Vec<String> =
        picture.digits.iter().map(|digit| format!("{} {}", digit.colour, digit.label)).collect();
    (format!("<img>{}</img>read:", picture.path), words.join(", "))
}

fn chat_grounding(picture: &Described, _i: usize) -> (String, String) {
    let digit = picture.asked();
    let [x1, y1, x2, y2] = digit.thousandths;
    let label = digit.label;
    let question = format!("Picture 1: <img>{}</img>\nFind <ref>{label}</ref>", picture.path);
    (question, format!("<ref>{label}</ref><box>({x1},{y1}),({x2},{y2})</box>"))
}

fn chat_caption(picture: &Described, _i: usize) -> (String, String) {
    let question = format!("Picture 1: <img>{}</img>\nDescribe the picture.", picture.path);
    let words: Vec<String> =
        picture.digits.iter().map(|digit| format!("a {} {}", digit.colour, digit.label)).collect();
    (question, words.join(" and "))
}
