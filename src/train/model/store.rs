//! All tensors of a model by name, which of them are trained, and a place for their gradients.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

/// Index of a tensor in the [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(usize);

/// A trainable tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name as in a checkpoint file: `transformer.h.0.attn.c_attn.lora_A.weight`.
    pub name: String,
    /// Master copy, f32.
    pub value: Tensor,
    /// Whether weight decay applies, by the rule of the Hugging Face trainer: not to biases and
    /// not to layer norms (RMS norms of the language model are decayed).
    pub decay: bool,
}

/// Tensors in the number format of the computation. A trained tensor also has an f32 master.
#[derive(Clone, Debug)]
pub(super) struct Store {
    tensors: Vec<Tensor>,
    names: Vec<String>,
    ids: BTreeMap<String, Id>,
    parameters: Vec<Parameter>,
    /// Position of a tensor in `parameters`.
    slots: Vec<Option<usize>>,
}

impl Store {
    /// A store of `tensors`, which have their final number format; none is trained yet.
    pub(super) fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        let ids = tensors.keys().enumerate().map(|(i, name)| (name.clone(), Id(i))).collect();
        let (names, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
        let slots = vec![None; names.len()];
        Store { tensors, names, ids, parameters: Vec::new(), slots }
    }

    /// Marks tensors as trained. Names are in order, so parameters are sorted by name.
    pub(super) fn train(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for (i, name) in self.names.iter().enumerate() {
            if wanted(name) {
                self.slots[i] = Some(self.parameters.len());
                self.parameters.push(Parameter {
                    name: name.clone(),
                    value: self.tensors[i].to_dtype(DType::F32)?,
                    decay: is_decayed(name),
                });
            }
        }
        Ok(())
    }

    /// Index of a tensor that the audit has seen.
    pub(super) fn id(&self, name: &str) -> Id {
        *self.ids.get(name).unwrap_or_else(|| panic!("the audit checks that `{name}` exists"))
    }

    /// Index of a tensor that need not exist.
    pub(super) fn find(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }

    /// The tensor, in the number format of the computation.
    pub(super) fn get(&self, id: Id) -> &Tensor {
        &self.tensors[id.0]
    }

    /// Whether the tensor is trained.
    pub(super) fn trains(&self, id: Id) -> bool {
        self.slots[id.0].is_some()
    }

    /// Whether any tensor is trained whose name begins with `prefix`.
    pub(super) fn trains_below(&self, prefix: &str) -> bool {
        self.parameters.iter().any(|parameter| parameter.name.starts_with(prefix))
    }

    /// All trained tensors, sorted by name.
    pub(super) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// All tensors by name; a trained one as its f32 master.
    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        let best = |i: usize| match self.slots[i] {
            Some(slot) => self.parameters[slot].value.clone(),
            None => self.tensors[i].clone(),
        };
        self.names.iter().enumerate().map(|(i, name)| (name.clone(), best(i))).collect()
    }

    /// Replaces the master of parameter `index` and its copy in the computation's format.
    pub(super) fn set_parameter(&mut self, index: usize, value: Tensor) -> Result<()> {
        let id = self.id(&self.parameters[index].name);
        let dtype = self.tensors[id.0].dtype();
        // Adapters are computed in f32 whatever the base is, so for them this is no copy.
        self.tensors[id.0] = value.to_dtype(dtype)?;
        self.parameters[index].value = value;
        Ok(())
    }
}

fn is_decayed(name: &str) -> bool {
    let layer_norm = name.contains(".visual.") && name.contains("ln_");
    !name.contains("bias") && !layer_norm
}

/// Gradients of the parameters, f32, aligned with [`Store::parameters`].
#[derive(Debug)]
pub(super) struct Gradients {
    slots: Vec<Option<Tensor>>,
}

impl Gradients {
    /// No gradient yet.
    pub(super) fn new(store: &Store) -> Self {
        Gradients { slots: vec![None; store.parameters.len()] }
    }

    /// Adds the gradient of a tensor; a frozen tensor's is not even computed.
    pub(super) fn add(
        &mut self,
        store: &Store,
        id: Id,
        gradient: impl FnOnce() -> Result<Tensor>,
    ) -> Result<()> {
        let Some(slot) = store.slots[id.0] else { return Ok(()) };
        let gradient = gradient()?.to_dtype(DType::F32)?.reshape(store.tensors[id.0].shape())?;
        let sum = match self.slots[slot].take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.slots[slot] = Some(sum);
        Ok(())
    }

    /// The gradients in order. A parameter that the unit did not reach has zeros, so that all
    /// ranks always reduce the same list.
    pub(super) fn into_tensors(self, store: &Store) -> Result<Vec<Tensor>> {
        let parameters = store.parameters.iter();
        let filled = self.slots.into_iter().zip(parameters);
        filled
            .map(|(slot, parameter)| match slot {
                Some(gradient) => gradient.contiguous(),
                None => parameter.value.zeros_like(),
            })
            .collect()
    }
}
