//! Greedy decoding with a cache of keys and values.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};

use super::{
    Mode, ModelError, QwenVl,
    language::{Cache, Pass, angles},
};
use crate::train::{
    batch::{ImageInput, UnitBatch},
    ops::softmax::CausalMask,
};

/// A question: token ids with slots for pictures. The `row` of its pictures is ignored.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    pub images: Vec<ImageInput>,
}

impl QwenVl {
    /// The most likely continuation of each prompt, at most `max_new` tokens, without the stop
    /// token. Prompts of equal length are decoded together; the others wait for their turn, so
    /// that no padding can touch an answer.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        max_new: usize,
        stop: &[u32],
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, prompt) in prompts.iter().enumerate() {
            by_length.entry(prompt.ids.len()).or_default().push(i);
        }
        let mut answers = vec![Vec::new(); prompts.len()];
        for group in by_length.values() {
            let members: Vec<&Prompt> = group.iter().map(|i| &prompts[*i]).collect();
            let decoded = self.generate_together(&members, max_new, stop)?;
            for (i, answer) in group.iter().zip(decoded) {
                answers[*i] = answer;
            }
        }
        Ok(answers)
    }

    fn generate_together(
        &self,
        prompts: &[&Prompt],
        max_new: usize,
        stop: &[u32],
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let unit = unit_of(prompts);
        let (rows, length) = (unit.rows, unit.length);
        let mut caches = vec![Cache::default(); self.blocks.len()];
        let mask = CausalMask::new(&unit.lengths);
        let turned = angles(&self.config, Mode::Eval, (0, length, length), &self.device)?;
        let (x_TD, _sources, _saved) = self.embed(&unit, false)?;
        let pass = Pass { rows, angles: turned, mask: Some(mask), dropout: None };
        let mut next = self.next_tokens(x_TD, &pass, &mut caches)?;
        let mut answers = vec![Vec::new(); rows];
        let mut open = vec![true; rows];
        for seen in length..length + max_new {
            for (row, token) in next.iter().enumerate() {
                open[row] &= !stop.contains(token);
                if open[row] {
                    answers[row].push(*token);
                }
            }
            if !open.contains(&true) || seen + 1 == length + max_new {
                break;
            }
            // The stretch of the angles is fixed by the length of the prompt, as the keys in
            // the cache were turned with it.
            let turned = angles(&self.config, Mode::Eval, (seen, 1, length), &self.device)?;
            let ids = Tensor::from_slice(&next, rows, &self.device)?;
            let x_BD = self.store.get(self.wte).index_select(&ids, 0)?;
            let pass = Pass { rows, angles: turned, mask: None, dropout: None };
            next = self.next_tokens(x_BD, &pass, &mut caches)?;
        }
        Ok(answers)
    }

    /// The most likely token after the last position of each row.
    fn next_tokens(
        &self,
        mut x_TD: Tensor,
        pass: &Pass,
        caches: &mut [Cache],
    ) -> Result<Vec<u32>, ModelError> {
        for (block, cache) in self.blocks.iter().zip(caches) {
            x_TD = block.forward(&self.store, x_TD, pass, Some(cache))?.0;
        }
        let (tokens, width) = x_TD.dims2()?;
        let length = tokens / pass.rows;
        let last_BD = x_TD.reshape((pass.rows, length, width))?.narrow(1, length - 1, 1)?;
        let h = self.ln_f.forward(&self.store, &last_BD.squeeze(1)?.contiguous()?)?;
        Ok(self.project(&h)?.argmax(D::Minus1)?.to_vec1::<u32>()?)
    }
}

fn unit_of(prompts: &[&Prompt]) -> UnitBatch {
    let length = prompts[0].ids.len();
    UnitBatch {
        rows: prompts.len(),
        length,
        ids: prompts.iter().flat_map(|prompt| prompt.ids.iter().copied()).collect(),
        lengths: vec![length; prompts.len()],
        labels: Vec::new(),
        images: prompts
            .iter()
            .enumerate()
            .flat_map(|(row, prompt)| {
                prompt.images.iter().map(move |image| ImageInput { row, ..image.clone() })
            })
            .collect(),
        samples: (0..prompts.len() as u64).collect(),
    }
}
