use super::{
    names::JobName,
    read::Reader,
    store::{Limits, Receipt, Store, StoreError},
};
use crate::logs::segment::{Body, Record};

const POD: (u32, u32, &str) = (1, 0, "u-1");

fn job() -> JobName {
    JobName::new("team", "digits").unwrap()
}

fn line(rank: u32, number: u64, text: &str) -> Record {
    let body = Body::Line(text.to_owned());
    Record { rank, attempt: 1, epoch: 1, time_ms: 1000 + number, number, body }
}

fn frames(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    bytes
}

/// All lines as `rank number text`.
fn lines(store: &Store, query: Query) -> Vec<String> {
    let mut lines = Vec::new();
    let mut reader = Reader::new(job().folder(&store.root), query);
    let each = |line: StoredLine| {
        let text = line.text.or_else(|| Some(format!("{} lost", line.lost?))).unwrap();
        lines.push(format!("{} {} {text}", line.rank, line.number));
        true
    };
    reader.read_new(each).unwrap();
    lines
}

use super::{Query, StoredLine};

#[test]
fn what_is_sent_again_is_stored_once_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let sent = frames(&[line(0, 0, "a"), line(1, 0, "b"), line(0, 1, "c")]);
    for restart in 0..3 {
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        for repeat in 0..2 {
            let receipt = store.append(&job(), POD, &sent).unwrap();
            let new = if restart + repeat == 0 { 3 } else { 0 };
            assert_eq!(receipt, Receipt { lines: new, repeated: 3 - new, lost: 0 });
        }
        assert_eq!(lines(&store, Query::default()), ["0 0 a", "1 0 b", "0 1 c"]);
    }
}

#[test]
fn lines_that_a_pod_gave_up_show_as_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let gap = Record { body: Body::Gap(4), ..line(0, 1, "") };
    let next = Record { body: Body::Next, attempt: 0, time_ms: 0, ..line(0, 9, "") };
    let sent = frames(&[line(0, 0, "a"), gap, line(0, 6, "b"), next]);
    assert_eq!(store.append(&job(), POD, &sent).unwrap().lost, 4 + 1 + 2);
    let expected = ["0 0 a", "0 1 4 lost", "0 5 1 lost", "0 6 b", "0 7 2 lost"];
    assert_eq!(lines(&store, Query::default()), expected);
}

#[test]
fn a_file_cut_at_any_byte_gives_its_whole_lines_and_the_rest_again_from_the_pod() {
    let folder = tempfile::tempdir().unwrap();
    let all = frames(&[line(0, 0, "a"), line(0, 1, "b"), line(0, 2, "c")]);
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    store.append(&job(), POD, &all).unwrap();
    let path = super::retention::files(folder.path()).unwrap()[0].path.clone();
    for length in 0..all.len() {
        std::fs::write(&path, &all[..length]).unwrap();
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        let left = lines(&store, Query::default()).len();
        let receipt = store.append(&job(), POD, &all).unwrap();
        let (lines_new, repeated) = (3 - left as u64, left as u64);
        assert_eq!(receipt, Receipt { lines: lines_new, repeated, lost: 0 }, "at {length}");
        assert_eq!(lines(&store, Query::default()), ["0 0 a", "0 1 b", "0 2 c"]);
    }
}

#[test]
fn damage_in_the_middle_costs_one_line_and_shows() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let one = frames(&[line(0, 0, "a")]).len();
    let sent = frames(&[line(0, 0, "a"), line(0, 1, "b"), line(0, 2, "c")]);
    store.append(&job(), POD, &sent).unwrap();
    let path = super::retention::files(folder.path()).unwrap()[0].path.clone();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[one + 20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let expected = ["0 0 a", "0 1 1 lost", "0 2 c"];
    assert_eq!(lines(&store, Query::default()), expected);
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    assert_eq!(store.append(&job(), POD, &sent).unwrap().repeated, 3);
    assert_eq!(lines(&store, Query::default()), expected);
}

#[test]
fn only_its_own_ranks_are_taken_from_a_pod() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let refused = |pod: (u32, u32, &str), rank: u32| {
        let error = store.append(&job(), pod, &frames(&[line(rank, 0, "x")])).unwrap_err();
        assert!(matches!(error, StoreError::ForeignRank { .. }), "{error}");
    };
    store.append(&job(), (1, 1, "u-2"), &frames(&[line(2, 0, "x")])).unwrap();
    refused((1, 0, "u-1"), 2);
    refused((1, 0, "u-1"), 16);
    refused((1, 5, "u-1"), 4);
    // A pod has at most 16 ranks, side by side.
    refused((1, 1, "u-2"), 18);
    store.append(&job(), (1, 1, "u-2"), &frames(&[line(17, 0, "x")])).unwrap();
}

#[test]
fn a_damaged_segment_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let sent = frames(&[line(0, 0, "a"), line(0, 1, "b")]);
    for damaged in [&sent[..sent.len() - 1], &[sent.as_slice(), b"x"].concat()] {
        let error = store.append(&job(), POD, damaged).unwrap_err();
        assert!(matches!(error, StoreError::Malformed { .. }), "{error}");
    }
    let other = Record { attempt: 2, ..line(0, 0, "a") };
    let error = store.append(&job(), POD, &frames(&[other])).unwrap_err();
    assert!(matches!(error, StoreError::Malformed { .. }), "{error}");
    assert_eq!((lines(&store, Query::default()).len(), store.used_bytes()), (0, 0));
}

#[test]
fn the_oldest_files_of_a_stream_go_first_and_the_gap_shows() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { part_bytes: 100, stream_bytes: 350, ..Limits::default() };
    let store = Store::open(folder.path(), limits).unwrap();
    for number in 0..20 {
        let text = "x".repeat(30);
        store.append(&job(), POD, &frames(&[line(0, number, &text)])).unwrap();
    }
    let read = lines(&store, Query::default());
    let (first, rest) = read.split_first().unwrap();
    assert_eq!(*first, format!("0 0 {} lost", 20 - rest.len()));
    assert!(store.used_bytes() <= 350, "{}", store.used_bytes());
    let bytes: u64 = super::retention::files(folder.path()).unwrap().iter().map(|f| f.bytes).sum();
    assert_eq!(store.used_bytes(), bytes);
}

#[test]
fn a_full_store_removes_closed_files_and_then_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { total_bytes: 600, part_bytes: 100, ..Limits::default() };
    let store = Store::open(folder.path(), limits).unwrap();
    for number in 0..50 {
        store.append(&job(), POD, &frames(&[line(0, number, "twenty bytes of text")])).unwrap();
    }
    assert!(store.used_bytes() <= 600);
    // Files that grow are never removed: here each stream has only such.
    let mut full = None;
    for index in 1..20 {
        let pod_uid = format!("u-{index}");
        let sent = frames(&[line(index, 0, "twenty bytes of text")]);
        match store.append(&job(), (1, index, &pod_uid), &sent) {
            Ok(_receipt) => {}
            Err(error) => full = Some(error),
        }
    }
    assert!(matches!(full, Some(StoreError::Full { total: 600, .. })), "{full:?}");
    assert!(store.used_bytes() <= 600);
}

#[test]
fn old_files_and_empty_folders_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let age = std::time::Duration::from_secs(3600);
    let store = Store::open(folder.path(), Limits { age, ..Limits::default() }).unwrap();
    store.append(&job(), POD, &frames(&[line(0, 0, "a")])).unwrap();
    drop(store);
    let store = Store::open(folder.path(), Limits { age, ..Limits::default() }).unwrap();
    assert_eq!(store.sweep().unwrap(), 0);
    let path = super::retention::files(folder.path()).unwrap()[0].path.clone();
    let old = std::time::SystemTime::now() - 2 * age;
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    assert_eq!(store.sweep().unwrap(), 1);
    assert_eq!(store.used_bytes(), 0);
    store.sweep().unwrap();
    assert!(!job().folder(folder.path()).exists());
}

#[test]
fn a_query_selects() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let sent = frames(&[line(0, 0, "a"), line(1, 0, "b"), line(0, 1, "c")]);
    store.append(&job(), POD, &sent).unwrap();
    let ranks = Query { ranks: vec![1], ..Query::default() };
    assert_eq!(lines(&store, ranks), ["1 0 b"]);
    let since = Query { since: Some(1001), ..Query::default() };
    assert_eq!(lines(&store, since), ["0 1 c"]);
    let attempt = Query { attempt: Some(2), ..Query::default() };
    assert_eq!(lines(&store, attempt), Vec::<String>::new());
    let streams = super::read::streams(&job().folder(folder.path())).unwrap();
    assert_eq!(streams.iter().map(|stream| stream.rank).collect::<Vec<_>>(), [0, 1]);
}
