//! Which call of the operator goes wrong, and how. A plan depends on numbers of calls alone, not on
//! the clock: the same plan meets the same call of the same life again, as far as the API server
//! answers in the same order.

use std::fmt;

use qvl_cluster::testing::mix;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is answered with this code and does not reach the API server.
    Refuse(u16),
    /// It is carried out, and answered with 500.
    Deny,
    /// Its connection breaks before it is carried out.
    DropBefore,
    /// Its connection breaks after it was carried out.
    DropAfter,
    /// All watches break; the call itself is answered.
    CutWatches,
    /// The operator is killed before it is carried out.
    CrashBefore,
    /// The operator is killed after it was carried out, before it hears of it.
    CrashAfter,
}

/// Faults of which the API server or the network is the cause.
pub(crate) const OUTSIDE: [Fault; 7] = [
    Fault::Refuse(409),
    Fault::Refuse(429),
    Fault::Refuse(500),
    Fault::Deny,
    Fault::DropBefore,
    Fault::DropAfter,
    Fault::CutWatches,
];

/// Calls after which a seeded plan has no more faults: a life must be able to end.
const CALM_AFTER: u64 = 250;

/// Faults of one life.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Plan {
    Calm,
    /// One fault.
    Once {
        call: u64,
        fault: Fault,
    },
    /// Many faults: of 1,000 calls so many.
    Seeded {
        seed: u64,
        per_mille: u64,
    },
}

impl Plan {
    /// What goes wrong with call number `call`.
    pub(crate) fn at(&self, call: u64) -> Option<Fault> {
        match self {
            Plan::Calm => None,
            Plan::Once { call: at, fault } => (*at == call).then_some(*fault),
            Plan::Seeded { seed, per_mille } => {
                let dice = mix(seed.wrapping_mul(0x1000_0000_01B3) ^ call);
                let kinds = [&OUTSIDE[..], &[Fault::CrashBefore, Fault::CrashAfter]].concat();
                let fault = kinds[usize::try_from(mix(dice) % kinds.len() as u64).unwrap()];
                (call < CALM_AFTER && dice % 1000 < *per_mille).then_some(fault)
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plan::Calm => write!(out, "no fault"),
            Plan::Once { call, fault } => write!(out, "{fault:?} at call {call}"),
            Plan::Seeded { seed, per_mille } => write!(out, "seed {seed}, {per_mille} per mille"),
        }
    }
}
