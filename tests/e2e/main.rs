//! Jobs on a real cluster: the digits job on two nodes with two GPUs each, and everything that can
//! break it. One cluster serves all of them, one after the other; it comes up with the first and
//! ends with the last.
//!
//!     cargo test --release --test e2e -- kill      # only those with this word
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../operator/client.rs"]
mod client;
mod control;
mod job;
mod lab;
mod machines;
mod queue;
mod ranks;
mod seeded;
mod seen;

use std::{
    io::{self, Write as _},
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use libtest_mimic::{Arguments, Failed, Trial};

use self::lab::Lab;

/// A test, and its name.
type Test = (&'static str, fn(&Lab));

fn main() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let lab: Arc<Mutex<Option<Lab>>> = Arc::default();
    let tests =
        [ranks::TESTS, machines::TESTS, queue::TESTS, control::TESTS, seeded::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test): Test| {
        let lab = Arc::clone(&lab);
        Trial::test(name, move || {
            let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
            let lab = lab.get_or_insert_with(Lab::up);
            let begin = Instant::now();
            let run = panic::catch_unwind(AssertUnwindSafe(|| test(lab)));
            // What a test has left must not disturb the next one.
            let clean = panic::catch_unwind(AssertUnwindSafe(|| lab.clean()));
            let seconds = begin.elapsed().as_secs();
            io::stderr().write_all(format!("{name}: {seconds} s\n").as_bytes()).unwrap();
            run.and(clean).map_err(|_shown| Failed::from("it panicked: see above"))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(lab.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}
