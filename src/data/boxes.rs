//! Boxes in answers: `<box>(x1,y1),(x2,y2)</box>`, whole thousandths of width and height.

/// A box in thousandths of the picture, `x1 < x2` and `y1 < y2`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Box2d {
    pub x1: f64,
    pub y1: f64,
    pub x2: f64,
    pub y2: f64,
}

impl Box2d {
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
}

/// The first box of a model's answer. The tags may be missing, because a model may forget them;
/// a reversed box counts as none.
pub fn parse_answer(text: &str) -> Option<Box2d> {
    let inner = text.split_once("<box>").map_or(text, |(_before, after)| after);
    let inner = inner.split("</box>").next().unwrap_or(inner);
    let start = inner.find('(')?;
    let numbers: Vec<f64> = inner[start..]
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .filter(|word| !word.is_empty())
        .map_while(|word| word.parse().ok())
        .take(4)
        .collect();
    let [x1, y1, x2, y2] = numbers[..] else { return None };
    (x1 < x2 && y1 < y2 && x2 <= 1000.0 && y2 <= 1000.0).then_some(Box2d { x1, y1, x2, y2 })
}

/// The boxes of an answer in the training data, each with its text between the tags.
pub fn parse_training(text: &str) -> Vec<(String, Result<Box2d, BoxProblem>)> {
    text.split("<box>")
        .skip(1)
        .map(|rest| {
            let inner = rest.split("</box>").next().unwrap_or(rest);
            (inner.to_owned(), parse_strict(inner))
        })
        .collect()
}

fn parse_strict(inner: &str) -> Result<Box2d, BoxProblem> {
    let body = inner.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let (a, b) = body.and_then(|body| body.split_once("),(")).ok_or(BoxProblem::Form)?;
    let mut numbers = [0.0; 4];
    let words = a.split(',').chain(b.split(','));
    let mut count = 0;
    for (slot, word) in numbers.iter_mut().zip(words.clone()) {
        *slot = coordinate(word)?;
        count += 1;
    }
    if count != 4 || words.count() != 4 {
        return Err(BoxProblem::Form);
    }
    let [x1, y1, x2, y2] = numbers;
    if x2 < x1 || y2 < y1 {
        return Err(BoxProblem::Reversed);
    }
    if x1 == x2 || y1 == y2 {
        return Err(BoxProblem::Empty);
    }
    Ok(Box2d { x1, y1, x2, y2 })
}

fn coordinate(word: &str) -> Result<f64, BoxProblem> {
    if word.contains('.') && word.parse::<f64>().is_ok() {
        return Err(BoxProblem::Decimal);
    }
    let value: i64 = word.parse().map_err(|_error| BoxProblem::Form)?;
    if (0..1000).contains(&value) { Ok(value as f64) } else { Err(BoxProblem::Range) }
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
        assert_eq!(parse_answer("<box>(1,2),(30"), None);
        assert_eq!(parse_answer("7"), None);
        assert_eq!(parse_answer("(30,40),(1,2)"), None);
    }

    #[test]
    fn training_boxes_are_read_strictly() {
        let problem = |inner: &str| parse_strict(inner).unwrap_err();
        assert!(parse_strict("(588,499),(725,789)").is_ok());
        assert_eq!(problem("(588, 499),(725,789)"), BoxProblem::Form);
        assert_eq!(problem("(0.5,499),(725,789)"), BoxProblem::Decimal);
        assert_eq!(problem("(588,499),(725,1000)"), BoxProblem::Range);
        assert_eq!(problem("(725,499),(588,789)"), BoxProblem::Reversed);
        assert_eq!(problem("(5,499),(5,789)"), BoxProblem::Empty);
        assert_eq!(problem("(5,499),(7,789),(1,2)"), BoxProblem::Form);
        assert_eq!(problem(""), BoxProblem::Form);
    }

    #[test]
    fn iou_of_known_boxes() {
        let a = Box2d { x1: 0.0, y1: 0.0, x2: 10.0, y2: 10.0 };
        assert!((a.iou(&a) - 1.0).abs() < 1e-12);
        assert!((a.iou(&Box2d { x1: 5.0, x2: 15.0, ..a }) - 1.0 / 3.0).abs() < 1e-12);
        assert!(a.iou(&Box2d { x1: 10.0, x2: 15.0, ..a }) == 0.0);
    }
}
