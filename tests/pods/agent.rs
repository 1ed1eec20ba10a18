//! Two supervisors with two ranks each: success, and every way to fail.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use qvl::operator::gang::GangPhase;

use super::bench::{Agent, Collector, Job, Server, get, wait_for};

fn step(server: &Server) -> u64 {
    server.view().progress.step
}

fn start(job: &Job, server: &Server, more: &[(&str, &str)]) -> [Agent; 2] {
    [0, 1].map(|index| Agent::start(job, index, &server.url, more))
}

#[test]
fn four_ranks_in_two_pods_train_to_the_end_and_their_lines_survive_the_collector() {
    let job = Job::new("success", 2);
    job.write(120, |_job| {});
    let (server, mut collector) = (Server::start(&job), Collector::start(&job));
    let url = collector.url.clone();
    let mut agents = start(&job, &server, &[("QVL_COLLECTOR", &url)]);
    wait_for("some steps", || (5 < step(&server)).then_some(()));
    collector.kill();
    wait_for("more steps", || (40 < step(&server)).then_some(()));
    collector.run();
    let codes = agents.each_mut().map(Agent::code);
    assert_eq!(codes, [0, 0]);
    let view = server.view();
    assert_eq!((view.phase, view.restarts, view.epoch), (GangPhase::Succeeded, 0, 1));
    assert_eq!(view.notes.iter().find(|note| note.starts_with("clocks")), None);
    assert!(job.path("out/adapter/adapter_model.safetensors").exists());
    for (index, agent) in agents.iter().enumerate() {
        assert_eq!(agent.word(), None, "a success leaves no failure behind");
        // All that was printed is at the collector, in the same order, once.
        let printed = agent.output();
        let lines = lines(&job, &collector.url);
        for rank in [2 * index, 2 * index + 1] {
            let head = format!("[rank {rank}] ");
            let printed: Vec<&str> =
                printed.lines().filter_map(|line| line.strip_prefix(&head)).collect();
            let kept: Vec<&str> = lines
                .iter()
                .filter(|line| line["rank"] == rank)
                .map(|line| line["text"].as_str().unwrap())
                .collect();
            assert!(100 < printed.len(), "{printed:?}");
            assert_eq!(printed, kept);
        }
        assert!(printed.contains("] network: pod "), "{printed}");
        assert!(printed.contains(" Mbit/s there"), "{printed}");
    }
}

/// All lines that the collector has, as a user of the namespace reads them.
fn lines(job: &Job, collector: &str) -> Vec<serde_json::Value> {
    let words = format!("create token default -n {} --audience {}", job.namespace, job.audience());
    let token = job.cluster.run(&words);
    let url = format!("{collector}/v1/namespaces/{}/jobs/{}/lines", job.namespace, job.name);
    let (status, text) = get(&url, Some(token.trim()));
    assert_eq!(status, 200, "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_killed_rank_is_named_and_all_start_again_in_the_same_pods() {
    let job = Job::new("kill", 2);
    job.write(400, |_job| {});
    let server = Server::start(&job);
    let mut agents = start(&job, &server, &[]);
    wait_for("a checkpoint", || server.view().progress.checkpoint_step);
    agents[1].signal_rank(3, Signal::SIGKILL);
    let word = wait_for("a termination message", || agents[1].word());
    assert_eq!((&word["rank"], &word["exitCode"]), (&3.into(), &137.into()), "{word}");
    assert_eq!((&word["class"], &word["node"]), (&"crash".into(), &"node-1".into()), "{word}");
    assert!(word["what"].as_str().unwrap().starts_with("rank 3 was killed (signal 9)"), "{word}");
    wait_for("a second epoch", || (server.view().epoch == 2).then_some(()));
    assert_eq!(agents.each_mut().map(Agent::code), [0, 0]);
    let view = server.view();
    assert_eq!((view.phase, view.restarts, view.epoch), (GangPhase::Succeeded, 1, 2));
    let last = view.last_failure.unwrap();
    assert_eq!((last.rank, last.node.as_str(), last.exit_code), (3, "node-1", Some(137)));
    assert_eq!(agents[1].word(), None, "all is well in the end");
}

#[test]
fn a_stopped_rank_is_found_as_a_stall_and_blamed() {
    let job = Job::new("stall", 2);
    job.write(300, |_job| {});
    let server = Server::start(&job);
    let mut agents = start(&job, &server, &[]);
    wait_for("some steps", || (30 < step(&server)).then_some(()));
    let begin = Instant::now();
    agents[0].signal_rank(1, Signal::SIGSTOP);
    let last = wait_for("a stall", || server.view().last_failure);
    assert!(Duration::from_secs(25) < begin.elapsed(), "30 s is the least: {last:?}");
    assert_eq!((last.rank, last.node.as_str(), last.exit_code), (1, "node-0", Some(86)));
    assert!(last.what.contains("was stopped by a signal"), "{}", last.what);
    assert_eq!(agents.each_mut().map(Agent::code), [0, 0]);
    assert_eq!(server.view().epoch, 2);
}

#[test]
fn a_pod_that_is_asked_to_leave_saves_first() {
    let job = Job::new("leave", 2);
    job.write(4000, |job| job["spec"]["checkpoint"]["everySteps"] = 3000.into());
    let server = Server::start(&job);
    let mut agents = start(&job, &server, &[]);
    wait_for("some steps", || (10 < step(&server)).then_some(()));
    agents[1].signal(Signal::SIGTERM);
    assert_eq!(agents[1].code(), 85);
    let saved = wait_for("a checkpoint", || server.view().progress.checkpoint_step);
    assert!((10..3000).contains(&saved), "{saved}");
    // The other pod waits for what the operator makes of it, until it has to go as well.
    assert!(agents[0].is_running());
    agents[0].signal(Signal::SIGTERM);
    assert_eq!(agents[0].code(), 85);
}

#[test]
fn training_goes_on_without_a_broker_and_pods_do_not_wait_for_it_for_ever() {
    let job = Job::new("alone", 2);
    job.write(150, |_job| {});
    let server = Server::start(&job);
    let mut agents = start(&job, &server, &[]);
    wait_for("some steps", || (10 < step(&server)).then_some(()));
    let port = server.stop();
    wait_for("the result", || {
        job.path("out/adapter/adapter_model.safetensors").exists().then_some(())
    });
    let done = Instant::now();
    // An operator that comes back hears that they are done.
    let server = Server::start_at(&job, port);
    assert_eq!(agents.each_mut().map(Agent::code), [0, 0]);
    assert_eq!(server.view().phase, GangPhase::Succeeded);
    assert!(done.elapsed() < Duration::from_secs(60), "they were told to exit");
}

#[test]
fn pods_that_have_failed_end_when_the_broker_stays_away() {
    let job = Job::new("away", 2);
    job.write(4000, |_job| {});
    let server = Server::start(&job);
    let mut agents = start(&job, &server, &[("QVL_ALONE_SECONDS", "5")]);
    wait_for("some steps", || (10 < step(&server)).then_some(()));
    server.stop();
    agents[0].signal_rank(1, Signal::SIGKILL);
    assert_eq!(agents.each_mut().map(Agent::code), [137, 80], "the culprit's pod, a victim's pod");
    let words = agents.each_mut().map(|agent| agent.word().unwrap());
    assert_eq!((&words[0]["rank"], &words[1]["exitCode"]), (&1.into(), &80.into()), "{words:?}");
}

#[test]
fn a_job_that_is_wrong_fails_with_its_own_code_and_blames_no_machine() {
    let job = Job::new("wrong", 2);
    let test = [("QVL_SKIP_PREFLIGHT", "false")];
    job.write(10, |job| job["spec"]["model"]["path"] = "no-such-folder".into());
    let server = Server::start(&job);
    let mut agents = start(&job, &server, &test);
    assert_eq!(agents.each_mut().map(Agent::code), [66, 66]);
    let last = server.view().last_failure.unwrap();
    assert_eq!((last.class.as_str(), last.exit_code), ("input", Some(66)), "{last:?}");
    assert!(last.what.contains("no-such-folder/config.json"), "{}", last.what);
}

#[test]
fn only_the_first_pod_reads_all_of_the_data_and_the_others_are_told() {
    let job = Job::new("data", 2);
    job.write(10, |_job| {});
    let data = std::fs::read_to_string(job.path("d.json")).unwrap();
    std::fs::write(job.path("d.json"), data.replace("(1,2)", "(1,2000)")).unwrap();
    let server = Server::start(&job);
    let mut agents = start(&job, &server, &[("QVL_SKIP_PREFLIGHT", "false")]);
    assert_eq!(agents.each_mut().map(Agent::code), [65, 65]);
    let last = server.view().last_failure.unwrap();
    assert_eq!((last.class.as_str(), last.rank), ("input", 0), "{last:?}");
    assert!(last.what.contains("(1,2000)"), "{}", last.what);
    assert_eq!(agents[1].word(), None, "pod 1 found nothing wrong");
}
