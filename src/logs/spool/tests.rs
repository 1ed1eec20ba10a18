use std::fs;

use super::*;
use crate::logs::segment::Frames;

fn identity() -> Identity {
    Identity {
        namespace: "team".to_owned(),
        job: "digits".to_owned(),
        attempt: 1,
        index: 0,
        pod_uid: "u-1".to_owned(),
    }
}

fn open(folder: &Path, limits: Limits) -> Spool {
    Spool::start_with(folder, None, identity(), limits).unwrap()
}

const LONG: Duration = Duration::from_secs(20);

/// All records of a folder, in order.
fn records(folder: &Path) -> Vec<Record> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "seg"))
        .collect();
    paths.sort();
    paths
        .iter()
        .flat_map(|path| Frames::new(&fs::read(path).unwrap()).collect::<Vec<_>>())
        .collect()
}

fn brief(records: &[Record]) -> Vec<String> {
    let brief = |record: &Record| {
        let Record { rank, number, body, .. } = record;
        match body {
            Body::Line(text) => format!("r{rank} {number} {text}"),
            Body::Gap(count) => format!("r{rank} {number} gap of {count}"),
            Body::Next => format!("r{rank} next {number}"),
        }
    };
    records.iter().map(brief).collect()
}

#[test]
fn the_next_process_goes_on_with_the_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for _process in 0..2 {
        let spool = open(folder.path(), Limits::default());
        spool.push(0, 1, 10, "a");
        spool.push(1, 1, 11, "b");
        assert_eq!(spool.close(LONG).written, 2);
    }
    let expected = ["r0 0 a", "r1 0 b", "r0 1 a", "r1 1 b"];
    assert_eq!(brief(&records(folder.path())), expected);
}

#[test]
fn a_segment_cut_at_any_byte_keeps_its_whole_lines_and_takes_new_ones() {
    let whole = tempfile::tempdir().unwrap();
    let spool = open(whole.path(), Limits::default());
    ["a", "bb", "ccc"].iter().for_each(|text| spool.push(0, 1, 10, text));
    spool.close(LONG);
    let bytes = fs::read(whole.path().join("000000000001.seg")).unwrap();
    for length in 0..bytes.len() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("000000000001.seg"), &bytes[..length]).unwrap();
        let left = Frames::new(&bytes[..length]).count();
        let mut store = Store::open(folder.path(), Limits::default()).unwrap();
        let number = left as u64;
        let body = Body::Line("new".to_owned());
        let new = Record { rank: 0, attempt: 1, epoch: 1, time_ms: 0, number, body };
        assert_eq!(store.append(std::slice::from_ref(&new)).unwrap(), 0);
        let read = records(folder.path());
        assert_eq!(read.len(), left + 1, "cut after {length} bytes");
        assert_eq!(read.last(), Some(&new));
    }
}

#[test]
fn beyond_the_limit_the_oldest_lines_go_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 1000, total_bytes: 3000, ..Limits::default() };
    let spool = open(folder.path(), limits);
    for i in 0..200 {
        spool.push(0, 1, 10, &format!("line {i:04}"));
        // One write per line, so that each segment has its size.
        while spool.stats().written <= i {
            thread::yield_now();
        }
    }
    let stats = spool.close(LONG);
    let read = records(folder.path());
    let lines: Vec<&Record> =
        read.iter().filter(|record| matches!(record.body, Body::Line(_))).collect();
    assert!(0 < stats.lost);
    assert_eq!(lines.len() as u64, 200 - stats.lost);
    assert_eq!(lines[0].number, stats.lost, "the newest are kept");
    assert_eq!(read[0].body, Body::Next, "a segment begins with the numbers it goes on from");
    assert_eq!(read[0].number, stats.lost);
}

#[test]
fn what_finds_no_room_in_memory_leaves_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), Limits { queue_bytes: 100, ..Limits::default() });
    spool.push(0, 1, 10, &"x".repeat(101));
    spool.push(0, 1, 10, &"x".repeat(101));
    spool.push(0, 1, 10, "fits");
    let stats = spool.close(LONG);
    assert_eq!((stats.pushed, stats.written, stats.lost), (3, 1, 2));
    assert_eq!(brief(&records(folder.path())), ["r0 0 gap of 2", "r0 2 fits"]);
}

#[test]
fn acknowledged_segments_go_and_their_numbers_stay() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 1, ..Limits::default() };
    let mut store = Store::open(folder.path(), limits).unwrap();
    let line = |number| {
        let body = Body::Line("text".to_owned());
        Record { rank: 3, attempt: 1, epoch: 1, time_ms: 5, number, body }
    };
    for number in 0..3 {
        store.append(&[line(number)]).unwrap();
    }
    while let Some(batch) = store.batch(1 << 20).unwrap() {
        store.acknowledge(batch.end, batch.next).unwrap();
    }
    assert!(store.is_acknowledged());
    assert_eq!(brief(&records(folder.path())), ["r3 next 2", "r3 2 text"]);
    // Even without any segment the numbers do not begin again.
    fs::remove_file(folder.path().join("000000000003.seg")).unwrap();
    let mut store = Store::open(folder.path(), limits).unwrap();
    assert_eq!(store.next_numbers().get(&3), Some(&3));
    assert!(store.is_acknowledged());
    store.append(&[line(3)]).unwrap();
    let batch = store.batch(1 << 20).unwrap().unwrap();
    assert_eq!(brief(&Frames::new(&batch.frames).collect::<Vec<_>>()), ["r3 3 text"]);
}

#[test]
fn without_a_collector_closing_does_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), Limits::default());
    spool.push(0, 1, 10, "a");
    let begin = Instant::now();
    assert_eq!(spool.close(LONG).written, 1);
    assert!(begin.elapsed() < Duration::from_secs(5));
}
