//! Every code of the driver, judged in each way that its verdict knows.

use super::{mutations::xid, *};
use crate::{
    doctor::xid::{self as table, XidAction},
    facts::{KernelLog, XidEvent},
};

/// Codes by verdict, as the reference of this project lists them: written again, so that a slip in the table shows.
const BLOCK: &[u32] = &[
    46, 48, 54, 62, 64, 74, 78, 79, 95, 109, 110, 119, 120, 136, 140, 143, 151, 155, 156, 158, 159,
    167, 168, 169, 171, 172,
];
const WARN: &[u32] = &[80, 92, 93, 94, 121, 142, 157, 162, 163, 164, 165, 166, 170];
const PROGRAM: &[u32] = &[
    8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 82, 83, 84, 85, 86, 88,
    89, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 126, 127, 128, 129, 130, 131, 132, 133, 134,
    135, 139,
];
const IGNORE: &[u32] = &[37, 38, 43, 44, 66, 67, 106, 107, 137, 141, 152, 153, 160, 161];

const DAY_US: u64 = 24 * 60 * 60 * 1_000_000;

/// Verdict and problems on a node whose kernel log has these events, after `mutate`.
fn judged(events: &[XidEvent], mutate: impl FnOnce(&mut NodeFacts)) -> (Verdict, String) {
    let mut snapshot = fleet(1);
    let node = snapshot.nodes.values_mut().next().unwrap();
    let log = KernelLog { xids: events.to_vec(), ..KernelLog::default() };
    change(&mut node.kernel.log, |known| *known = log);
    mutate(node);
    let report = diagnose(&snapshot, &demand());
    let results = report.results.iter().filter(|result| result.rule.id == "xid-seen");
    let of_rule: Vec<_> = results.collect();
    let problems = of_rule.iter().flat_map(|result| &result.problems);
    let text = problems.map(|p| format!("{} | {} | {}\n", p.what, p.impact, p.fix)).collect();
    (of_rule.iter().map(|result| result.verdict).max().unwrap(), text)
}

fn alone(events: &[XidEvent]) -> Verdict {
    judged(events, |_node| {}).0
}

fn of_processes(code: u32, apart_us: u64) -> Vec<XidEvent> {
    (0..3).map(|n| xid(code, 1 + apart_us * n, Some(100 + u32::try_from(n).unwrap()))).collect()
}

fn expected(code: u32) -> Verdict {
    match code {
        code if BLOCK.contains(&code) || (144..=150).contains(&code) => Verdict::Fail,
        code if IGNORE.contains(&code) || PROGRAM.contains(&code) || code == 63 => Verdict::Pass,
        // Those that the catalog does not use, 45 without a cause, and 154 while the driver asks for nothing.
        _ => Verdict::Warn,
    }
}

#[test]
fn every_code_is_judged_as_the_reference_says() {
    for line in table::all() {
        let code = line.xid;
        assert_eq!(alone(&[xid(code, 1, Some(7))]), expected(code), "{code}");
        // Repeats change nothing: neither does a second look make it better.
        let twice = [xid(code, 1, Some(7)), xid(code, 2, Some(7))];
        assert_eq!(alone(&twice), expected(code), "{code} twice");
        let unused = line.description == "Unused";
        assert_eq!(line.action == XidAction::WarnUnused, unused, "{code}");
    }
    let warned = table::all().filter(|line| line.action == XidAction::Warn).map(|line| line.xid);
    assert!(warned.eq(WARN.iter().copied()));
}

#[test]
fn every_conditional_code_turns_on_its_condition() {
    for line in table::all() {
        let code = line.xid;
        match line.action {
            XidAction::InfoWarnIfThreeProcesses => {
                assert!(PROGRAM.contains(&code), "{code}");
                let three = of_processes(code, 10);
                assert_eq!(alone(&three), Verdict::Warn, "{code}: three processes");
                let over_days = of_processes(code, DAY_US);
                assert_eq!(alone(&over_days), Verdict::Pass, "{code}: one a day");
            }
            XidAction::BlockUnlessDecoded => {
                let mut event = xid(code, 1, None);
                event.text = "RLW_SRC_TRACK Nonfatal XC0 i0 Link 05 (0x1 0x2)".to_owned();
                assert_eq!(alone(&[event.clone()]), Verdict::Warn, "{code}: not fatal");
                let both = [event, xid(code, 2, None)];
                assert_eq!(alone(&both), Verdict::Fail, "{code}: one of two is fatal");
            }
            XidAction::WarnIfRemapPending => {
                let pending = |node: &mut NodeFacts| {
                    change_gpu(node, 0, |gpu| {
                        change(&mut gpu.remapped_rows, |rows| {
                            rows.as_mut().unwrap().pending = true;
                        });
                    });
                };
                assert_eq!(judged(&[on_first(code)], pending).0, Verdict::Warn, "{code}: pending");
            }
            XidAction::InfoIfSympathetic => {
                let with_cause = [xid(code, 2, None), xid(43, 1, None)];
                assert_eq!(alone(&with_cause), Verdict::Pass, "{code} after another");
            }
            XidAction::FollowAction => {
                let silent = |node: &mut NodeFacts| {
                    change_gpu(node, 0, |gpu| gpu.recovery_action = Fact::known(None, "field 230"));
                };
                let found = judged(&[on_first(code)], silent).0;
                assert_eq!(found, Verdict::Fail, "{code}: an old driver");
                for (action, verdict, says) in [
                    (0, Verdict::Warn, "the driver asks for nothing now"),
                    (1, Verdict::Fail, "do what the driver asks for, a reset of the GPU"),
                    (2, Verdict::Fail, "a reboot of the node"),
                    (3, Verdict::Fail, "that peers are drained"),
                    (4, Verdict::Fail, "that the node is drained and the GPU reset"),
                ] {
                    let (found, text) = judged(&[on_first(code)], |node| asks(node, action));
                    assert_eq!(found, verdict, "{code}: the driver says {action}");
                    assert!(text.contains(says), "{text}");
                }
            }
            XidAction::Block | XidAction::Warn | XidAction::WarnUnused | XidAction::Info => {}
        }
    }
}

/// An event on the first GPU of the fleet.
fn on_first(code: u32) -> XidEvent {
    let snapshot = fleet(1);
    let gpus = snapshot.nodes.values().next().unwrap().nvml.gpus.value().unwrap();
    let pci_address = gpus[0].pci_address.value().unwrap().clone();
    XidEvent { pci_address, ..xid(code, 1, None) }
}

/// The driver's own recommendation for the first GPU.
fn asks(node: &mut NodeFacts, action: u32) {
    change_gpu(node, 0, |gpu| gpu.recovery_action = Fact::known(Some(action), "field 230"));
}

/// Each problem names everybody who has an opinion, in their own word.
#[test]
fn every_problem_shows_who_differs() {
    for line in table::all() {
        let events = of_processes(line.xid, 10);
        let (verdict, text) = judged(&events, |_node| {});
        if verdict == Verdict::Pass {
            continue;
        }
        for opinion in line.opinions() {
            let said = format!("{} ({}", opinion.who, opinion.word);
            assert!(text.contains(&said), "{}: no `{said}` in {text}", line.xid);
        }
    }
}

#[test]
fn the_culprit_is_named_by_index_and_product_or_by_its_address_alone() {
    let (_verdict, text) = judged(&[on_first(79)], |_node| {});
    assert!(text.starts_with("GPU 0 (0000:"), "{text}");
    let elsewhere = XidEvent { pci_address: "0000:f1:00.0".to_owned(), ..xid(79, 1, None) };
    let (verdict, text) = judged(&[elsewhere], |_node| {});
    assert_eq!(verdict, Verdict::Fail);
    assert!(text.starts_with("GPU 0000:f1:00.0, which NVML does not list"), "{text}");
}
