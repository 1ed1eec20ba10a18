//! Fills [`crate::facts`] from this machine. Collection never fails: what cannot be read becomes
//! a fact that says why.
