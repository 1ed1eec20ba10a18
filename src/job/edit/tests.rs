use super::*;

const JOB: &str = "# mine
apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a}
spec:
  model: {path: m}   # the chat model
  data: {train: [{name: t, path: t.json, task: grounding}]}
  stages: [{name: s, steps: 10}]
  output: out
";

fn path(text: &str) -> Vec<String> {
    text.split('.').map(str::to_owned).collect()
}

fn set(at: &str, value: &str) -> Edit {
    Edit::Set { path: path(at), value: value.to_owned() }
}

fn add(at: &str, item: &str) -> Edit {
    Edit::Add { path: path(at), item: item.to_owned() }
}

/// Lines that are not in both texts, as `-old` and `+new`.
fn changed(before: &str, after: &str) -> Vec<String> {
    let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line));
    let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
    gone.map(|line| format!("-{line}")).chain(new.map(|line| format!("+{line}"))).collect()
}

#[track_caller]
fn check(extra: &str, edits: &[Edit], expected: &[&str]) {
    let text = format!("{JOB}{extra}");
    let after = edited(&text, edits).unwrap();
    assert_eq!(changed(&text, &after), expected, "{after}");
    // Once more changes nothing.
    assert_eq!(edited(&after, edits).unwrap(), after);
}

#[test]
fn a_field_is_set_in_every_style() {
    let shm = [set("spec.cluster.shm", "16Gi")];
    check("", &shm, &["+  cluster:", "+    shm: 16Gi"]);
    check(
        "  cluster:\n    shm: 1Gi # small\n",
        &shm,
        &["-    shm: 1Gi # small", "+    shm: 16Gi # small"],
    );
    check("  cluster:\n    image: x\n  # about seeds\n  seed: 3\n", &shm, &["+    shm: 16Gi"]);
    check(
        "  cluster: {shm: 1Gi, image: x}\n",
        &shm,
        &["-  cluster: {shm: 1Gi, image: x}", "+  cluster: {shm: 16Gi, image: x}"],
    );
    check(
        "  cluster: {image: x} # c\n",
        &shm,
        &["-  cluster: {image: x} # c", "+  cluster: {image: x, shm: 16Gi} # c"],
    );
    check("  cluster: {}\n", &shm, &["-  cluster: {}", "+  cluster: {shm: 16Gi}"]);
}

#[test]
fn items_are_added_in_every_style() {
    let unset = [add("spec.env.unset", "NCCL_IB_DISABLE"), add("spec.env.unset", "RANK")];
    check("", &unset, &["+  env:", "+    unset:", "+      - NCCL_IB_DISABLE", "+      - RANK"]);
    check(
        "  env:\n    unset: [A]\n",
        &unset,
        &["-    unset: [A]", "+    unset: [A, NCCL_IB_DISABLE, RANK]"],
    );
    check(
        "  env: {unset: [A]}\n",
        &[set("spec.env.set.B", "^lo,docker")],
        &["-  env: {unset: [A]}", "+  env: {unset: [A], set: {B: \"^lo,docker\"}}"],
    );
    check("  env:\n    unset:\n    - A\n", &unset[1..], &["+    - RANK"]);
    check(
        "  env:\n    set:\n      A: b\n",
        &unset[..1],
        &["+    unset:", "+      - NCCL_IB_DISABLE"],
    );
    check(
        "  env:\n    set:\n      OMP_NUM_THREADS: \"64\"\n",
        &[set("spec.env.set.OMP_NUM_THREADS", "8")],
        &["-      OMP_NUM_THREADS: \"64\"", "+      OMP_NUM_THREADS: \"8\""],
    );
}

#[test]
fn what_cannot_be_proven_is_left_to_a_person() {
    let odd = format!("{JOB}  ? cluster\n  : {{shm: 1Gi}}\n");
    let error = edited(&odd, &[set("spec.cluster.shm", "16Gi")]).unwrap_err();
    assert!(matches!(error, EditError::Form { .. }), "{error}");
    assert!(matches!(edited("a: [", &[]).unwrap_err(), EditError::NoJob(_)));
    let error = edited(JOB, &[set("spec.cluster.shm", "much")]).unwrap_err();
    assert!(error.to_string().contains("spec.cluster.shm"), "{error}");
}

#[test]
fn a_text_without_a_last_line_end_keeps_its_fields() {
    let text = JOB.trim_end();
    let after = edited(text, &[set("spec.cluster.shm", "16Gi")]).unwrap();
    assert_eq!(parse(&after, "j").unwrap().spec.cluster.shm, "16Gi");
    assert!(after.starts_with(text));
}
