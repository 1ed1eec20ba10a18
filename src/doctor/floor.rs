//! What a trainer's file asks of the driver, without looking at a machine.

use super::table;
use crate::facts::{TrainerFacts, Unread};

/// The driver that a trainer needs, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// The lowest driver that may run it, `525.60.13` or `570`; `None` if it needs none.
    pub driver: Option<String>,
    /// What asks for a driver, each with the driver that it asks for.
    pub reasons: Vec<Reason>,
    /// What could not be judged.
    pub unknown: Vec<Unread>,
}

/// One part of the file that asks for a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// `PTX 8.7 for sm_80, 20 programs`.
    pub what: String,
    /// The lowest driver.
    pub driver: String,
    /// Whether it asks only on a GPU that no machine code in the file is for.
    pub only_without_code: bool,
}

/// The lowest driver for a trainer's file.
pub fn floor(trainer: &TrainerFacts) -> Floor {
    let mut floor = Floor::default();
    match trainer.needed.get() {
        Ok(needed) => {
            for library in needed {
                let Some(major) = super::cuda_major(&library.name) else { continue };
                match table::minimum_driver(major) {
                    Some(driver) => floor.add(&library.name, driver, false),
                    None => floor.unknown.push(no_driver(&format!("CUDA {major}"), &library.name)),
                }
            }
        }
        Err(unread) => floor.unknown.push(unread),
    }
    for (fact, only_without_code) in [(&trainer.ptx, false), (&trainer.fat_ptx, true)] {
        match fact.get() {
            Ok(modules) => {
                for module in modules {
                    let version = format!("PTX {}.{}", module.version / 10, module.version % 10);
                    let what =
                        format!("{version} for {}, {} programs", module.target, module.count);
                    match table::ptx(module.version) {
                        Some((_cuda, branch)) => {
                            floor.add(&what, &branch.to_string(), only_without_code);
                        }
                        None => floor.unknown.push(no_driver(&version, fact.from())),
                    }
                }
            }
            Err(unread) => floor.unknown.push(unread),
        }
    }
    floor
}

fn no_driver(what: &str, from: &str) -> Unread {
    Unread { why: format!("no minimum driver is known for {what}"), from: from.to_owned() }
}

impl Floor {
    fn add(&mut self, what: &str, driver: &str, only_without_code: bool) {
        let (what, driver) = (what.to_owned(), driver.to_owned());
        let higher = self
            .driver
            .as_ref()
            .is_none_or(|known| table::version(known) < table::version(&driver));
        if higher && !only_without_code {
            self.driver = Some(driver.clone());
        }
        self.reasons.push(Reason { what, driver, only_without_code });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::testing::{change, fleet},
        facts::PtxModule,
    };

    #[test]
    fn ptx_raises_the_floor_above_that_of_the_libraries() {
        let mut trainer = fleet(1).nodes.into_values().next().unwrap().trainer;
        change(&mut trainer.ptx, |ptx| ptx[0].version = 87);
        let beside = PtxModule { version: 90, target: "sm_90".to_owned(), count: 1 };
        change(&mut trainer.fat_ptx, |ptx| ptx.push(beside));
        let floor = floor(&trainer);
        assert_eq!(floor.driver.as_deref(), Some("570"));
        let drivers: Vec<&str> = floor.reasons.iter().map(|r| r.driver.as_str()).collect();
        assert_eq!(drivers, ["525.60.13", "570", "580"]);
        assert!(floor.reasons[2].only_without_code && floor.unknown.is_empty());
    }
}
