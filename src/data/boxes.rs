//! Boxes in text: `<ref>name</ref><box>(x1,y1),(x2,y2)</box>`, whole thousandths of the width and
//! height of the picture, 0 to 999, x before y; `<quad>` holds the four corners of a
//! quadrilateral. A space inside changes the tokens, and what a model learned no longer fits.

use std::fmt;

/// A box in thousandths of the picture, `x1 < x2` and `y1 < y2`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Box2d {
    pub x1: f64,
    pub y1: f64,
    pub x2: f64,
    pub y2: f64,
}

/// As between the tags: `(x1,y1),(x2,y2)`, rounded down to whole thousandths.
impl fmt::Display for Box2d {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x1, y1, x2, y2] = [self.x1, self.y1, self.x2, self.y2].map(f64::floor);
        write!(f, "({x1:.0},{y1:.0}),({x2:.0},{y2:.0})")
    }
}

impl Box2d {
    /// From pixels of a picture of `width` x `height`; right and bottom lie just outside.
    pub fn from_pixels([left, top, right, bottom]: [f64; 4], width: f64, height: f64) -> Self {
        let thousandth = |value: f64, size: f64| (value * 1000.0 / size).floor().clamp(0.0, 999.0);
        Box2d {
            x1: thousandth(left, width),
            y1: thousandth(top, height),
            x2: thousandth(right, width),
            y2: thousandth(bottom, height),
        }
    }

    /// Intersection over union, 0 to 1.
    pub fn iou(&self, other: &Box2d) -> f64 {
        let width = self.x2.min(other.x2) - self.x1.max(other.x1);
        let height = self.y2.min(other.y2) - self.y1.max(other.y1);
        if width <= 0.0 || height <= 0.0 {
            return 0.0;
        }
        let both = width * height;
        both / (self.area() + other.area() - both)
    }

    fn area(&self) -> f64 {
        (self.x2 - self.x1) * (self.y2 - self.y1)
    }
}

/// Boxes as an answer writes them, with what they show if that is known.
pub fn markup(reference: Option<&str>, boxes: &[Box2d]) -> String {
    let name = reference.map_or(String::new(), |name| format!("<ref>{name}</ref>"));
    name + &boxes.iter().map(|found| format!("<box>{found}</box>")).collect::<String>()
}

/// What is wrong with a box of the training data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxProblem {
    /// Not of the form `(x1,y1),(x2,y2)`; a space changes the tokens.
    Form,
    /// A decimal fraction, where the model knows whole thousandths.
    Decimal,
    /// A coordinate outside 0..=999.
    Range,
    /// `x2 < x1` or `y2 < y1`.
    Reversed,
    /// No width or no height.
    Empty,
    /// `<box>` without `</box>`, or the reverse.
    Unclosed,
}

/// A `<box>` or `<quad>` of the training data.
#[derive(Clone, Debug, PartialEq)]
pub struct Marked {
    /// The text as it stands there, tags included.
    pub text: String,
    /// The box, or the one around the corners of a quadrilateral.
    pub place: Result<Box2d, BoxProblem>,
}

/// The first box of a model's answer. The tags may be missing, because a model may forget them;
/// a reversed box counts as none, and so does one outside of the picture.
pub fn parse_answer(text: &str) -> Option<Box2d> {
    let (count, inner) = match (text.find("<box>"), text.find("<quad>")) {
        (Some(at), None) => (4, &text[at..]),
        (None, Some(at)) => (8, &text[at..]),
        (Some(first), Some(other)) if first < other => (4, &text[first..]),
        (Some(_), Some(at)) => (8, &text[at..]),
        (None, None) => (4, text),
    };
    let end = inner.find("</box>").or_else(|| inner.find("</quad>")).unwrap_or(inner.len());
    let inner = &inner[..end];
    let start = inner.find('(')?;
    let numbers: Vec<f64> = inner[start..]
        .split(|c: char| !c.is_ascii_digit() && c != '.' && c != '-')
        .filter(|word| !word.is_empty())
        .map_while(|word| word.parse().ok())
        .take(count)
        .collect();
    let place = around(&numbers, count)?;
    let inside = 0.0 <= place.x1 && 0.0 <= place.y1 && place.x2 <= 1000.0 && place.y2 <= 1000.0;
    (place.x1 < place.x2 && place.y1 < place.y2 && inside).then_some(place)
}

/// The box of two corners, or around four.
fn around(numbers: &[f64], count: usize) -> Option<Box2d> {
    if numbers.len() != count {
        return None;
    }
    if let [x1, y1, x2, y2] = *numbers {
        return Some(Box2d { x1, y1, x2, y2 });
    }
    let axis = |first: usize| numbers[first..].iter().step_by(2).copied();
    let least = |first| axis(first).fold(f64::INFINITY, f64::min);
    let most = |first| axis(first).fold(f64::NEG_INFINITY, f64::max);
    Some(Box2d { x1: least(0), y1: least(1), x2: most(0), y2: most(1) })
}

/// The boxes and quadrilaterals of a text of the training data, in order of their kind.
pub fn parse_training(text: &str) -> Vec<Marked> {
    let mut found = marked(text, "<box>", "</box>", 2);
    found.extend(marked(text, "<quad>", "</quad>", 4));
    found
}

fn marked(text: &str, open: &str, close: &str, corners: usize) -> Vec<Marked> {
    let unclosed = |text: &str| Marked {
        text: text.chars().take(40).collect(),
        place: Err(BoxProblem::Unclosed),
    };
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        match (rest.find(open), rest.find(close)) {
            (None, None) => return found,
            (Some(start), Some(end)) if start < end => {
                let inner = &rest[start + open.len()..end];
                let place = if inner.contains(open) {
                    Err(BoxProblem::Unclosed)
                } else {
                    strict(inner, corners)
                };
                let end = end + close.len();
                found.push(Marked { text: rest[start..end].to_owned(), place });
                rest = &rest[end..];
            }
            (Some(start), None) => {
                found.push(unclosed(&rest[start..]));
                return found;
            }
            (_, Some(end)) => {
                found.push(unclosed(&rest[end..]));
                rest = &rest[end + close.len()..];
            }
        }
    }
}

/// `(x,y),(x,y)`, with two or four corners.
fn strict(inner: &str, corners: usize) -> Result<Box2d, BoxProblem> {
    let body = inner.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let mut numbers = Vec::with_capacity(2 * corners);
    for corner in body.ok_or(BoxProblem::Form)?.split("),(") {
        let (x, y) = corner.split_once(',').ok_or(BoxProblem::Form)?;
        numbers.extend([coordinate(x)?, coordinate(y)?]);
    }
    let place = around(&numbers, 2 * corners).ok_or(BoxProblem::Form)?;
    if place.x2 < place.x1 || place.y2 < place.y1 {
        return Err(BoxProblem::Reversed);
    }
    if place.x1 == place.x2 || place.y1 == place.y2 {
        return Err(BoxProblem::Empty);
    }
    Ok(place)
}

fn coordinate(word: &str) -> Result<f64, BoxProblem> {
    if word.contains('.') && word.parse::<f64>().is_ok() {
        return Err(BoxProblem::Decimal);
    }
    let value: i64 = word.parse().map_err(|_error| BoxProblem::Form)?;
    if (0..1000).contains(&value) { Ok(value as f64) } else { Err(BoxProblem::Range) }
}

/// What is wrong with the references of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefProblem {
    /// `<ref>` without `</ref>`, or the reverse.
    Unclosed,
    /// A reference that no `<box>` or `<quad>` follows.
    WithoutBox,
}

/// Problems of the references of an answer.
pub fn check_references(text: &str) -> Option<RefProblem> {
    let mut rest = text;
    let mut without_box = None;
    loop {
        match (rest.find("<ref>"), rest.find("</ref>")) {
            (None, None) => return without_box,
            (Some(start), Some(end)) if start < end => {
                if rest[start + 5..end].contains("<ref>") {
                    return Some(RefProblem::Unclosed);
                }
                rest = &rest[end + "</ref>".len()..];
                let follows = rest.trim_start();
                if !follows.starts_with("<box>") && !follows.starts_with("<quad>") {
                    without_box = Some(RefProblem::WithoutBox);
                }
            }
            (Some(_) | None, Some(_) | None) => return Some(RefProblem::Unclosed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_generously() {
        let expected = Some(Box2d { x1: 1.0, y1: 2.0, x2: 30.0, y2: 40.0 });
        assert_eq!(parse_answer("<ref>7</ref><box>(1,2),(30,40)</box>"), expected);
        assert_eq!(parse_answer("(001,002),(030,040)"), expected);
        assert_eq!(parse_answer("<box>(1,2),(30,40"), expected);
        assert_eq!(parse_answer("<ref>7</ref>(1,2),(30,40)"), expected);
        assert_eq!(parse_answer("<box>(1,2),(30,40)</box><box>(5,6),(7,8)</box>"), expected);
        assert_eq!(parse_answer("<quad>(1,5),(9,2),(30,6),(8,40)</quad>"), expected);
        assert_eq!(parse_answer("<quad>(1,5),(9,2),(30,6)</quad>"), None);
        assert_eq!(parse_answer("<box>(1,2),(30"), None);
        assert_eq!(parse_answer("<box>(1,2)</box>,(30,40)"), None);
        assert_eq!(parse_answer("7"), None);
        assert_eq!(parse_answer("(30,40),(1,2)"), None);
        assert_eq!(parse_answer("(-5,40),(60,70)"), None);
        assert_eq!(parse_answer("(5,40),(60,7000)"), None);
    }

    fn problem(text: &str) -> Option<BoxProblem> {
        let found = parse_training(text);
        assert_eq!(found.len(), 1, "{text}");
        found[0].place.err()
    }

    #[test]
    fn training_boxes_are_read_strictly() {
        let inside = |inner: &str| problem(&format!("<box>{inner}</box>"));
        assert_eq!(inside("(588,499),(725,789)"), None);
        assert_eq!(inside("(588, 499),(725,789)"), Some(BoxProblem::Form));
        assert_eq!(inside("(0.5,499),(725,789)"), Some(BoxProblem::Decimal));
        assert_eq!(inside("(588,499),(725,1000)"), Some(BoxProblem::Range));
        assert_eq!(inside("(-1,499),(725,999)"), Some(BoxProblem::Range));
        assert_eq!(inside("(725,499),(588,789)"), Some(BoxProblem::Reversed));
        assert_eq!(inside("(5,499),(5,789)"), Some(BoxProblem::Empty));
        assert_eq!(inside("(5,499),(7,789),(1,2)"), Some(BoxProblem::Form));
        assert_eq!(inside("(1,2)"), Some(BoxProblem::Form));
        assert_eq!(inside(""), Some(BoxProblem::Form));
    }

    #[test]
    fn quadrilaterals_have_four_corners() {
        assert_eq!(problem("<quad>(1,2),(9,2),(9,8),(1,8)</quad>"), None);
        assert_eq!(problem("<quad>(1,2),(9,8)</quad>"), Some(BoxProblem::Form));
        assert_eq!(problem("<quad>(1,2),(1,3),(1,4),(1,8)</quad>"), Some(BoxProblem::Empty));
    }

    #[test]
    fn tags_must_be_closed() {
        assert_eq!(problem("<box>(1,2),(3,4)"), Some(BoxProblem::Unclosed));
        assert_eq!(problem("(1,2),(3,4)</box>"), Some(BoxProblem::Unclosed));
        assert_eq!(problem("<box>(1,2)<box>(1,2),(3,4)</box>"), Some(BoxProblem::Unclosed));
        assert_eq!(parse_training("<box>(1,2),(3,4)</box><box>(1,2),(3,4)</box>").len(), 2);
        assert_eq!(parse_training("no boxes"), []);
    }

    #[test]
    fn references_name_what_a_box_shows() {
        assert_eq!(check_references("a <ref>7</ref><box>(1,2),(3,4)</box>"), None);
        assert_eq!(check_references("none"), None);
        assert_eq!(check_references("<ref>7</ref> is here"), Some(RefProblem::WithoutBox));
        assert_eq!(check_references("<ref>7<box>(1,2),(3,4)</box>"), Some(RefProblem::Unclosed));
        assert_eq!(check_references("7</ref>"), Some(RefProblem::Unclosed));
    }

    #[test]
    fn boxes_are_written_as_they_are_read() {
        let place = Box2d::from_pixels([13.0, 0.0, 56.0, 112.0], 112.0, 112.0);
        assert_eq!(place.to_string(), "(116,0),(500,999)");
        let text = markup(Some("7"), &[place]);
        assert_eq!(text, "<ref>7</ref><box>(116,0),(500,999)</box>");
        assert_eq!(parse_answer(&text), Some(place));
        assert_eq!(parse_training(&text)[0].place, Ok(place));
    }

    #[test]
    fn iou_of_known_boxes() {
        let a = Box2d { x1: 0.0, y1: 0.0, x2: 10.0, y2: 10.0 };
        assert!((a.iou(&a) - 1.0).abs() < 1e-12);
        assert!((a.iou(&Box2d { x1: 5.0, x2: 15.0, ..a }) - 1.0 / 3.0).abs() < 1e-12);
        assert!(a.iou(&Box2d { x1: 10.0, x2: 15.0, ..a }) == 0.0);
    }
}
