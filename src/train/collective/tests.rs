use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::*;
use crate::train::reduce::{Layout, Tree, TreeSum};
use crate::wire::TrainerExit;

const SHAPES: [(usize, usize); 3] = [(3, 5), (1, 1), (40, 17)];

/// Gradients of one unit, of very different sizes, so that the order of additions matters.
fn gradients(unit: usize, scale: usize) -> Vec<Tensor> {
    let tensor = |(index, &(rows, columns)): (usize, &(usize, usize))| {
        let count = rows * columns * scale;
        let value = |i: usize| {
            let x = (i * 7919 + unit * 104_729 + index * 31) % 2003;
            #[expect(clippy::cast_possible_truncation, reason = "any f32 will do")]
            let value = ((x as f64) - 1000.0).powi(3) as f32 * 1e-3;
            value
        };
        let values: Vec<f32> = (0..count).map(value).collect();
        Tensor::from_vec(values, (rows, columns * scale), &Device::Cpu).unwrap()
    };
    SHAPES.iter().enumerate().map(tensor).collect()
}

fn partials(units: usize, rank: usize, world: usize, scale: usize) -> Partials {
    let layout = Layout::of(&gradients(0, scale), 2, &Device::Cpu);
    let mut sum = TreeSum::new(Tree::new(units), rank, world, layout);
    for unit in sum.range() {
        let scalars = [1e15 / (unit + 1) as f64, 1.0 / (unit + 3) as f64];
        sum.push(unit, &gradients(unit, scale), &scalars).unwrap();
    }
    sum.finish().unwrap()
}

fn bits(sum: &Sum) -> Vec<u64> {
    let mut bits: Vec<u64> = sum.scalars.iter().map(|value| value.to_bits()).collect();
    for tensor in &sum.tensors {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        bits.extend(values.iter().map(|value| u64::from(value.to_bits())));
    }
    bits
}

fn config(rank: usize, world: usize, master: &str) -> TcpConfig {
    TcpConfig {
        rank,
        world,
        master: master.to_owned(),
        token: "a shared secret".to_owned(),
        attempt: 2,
        job: "job hash".to_owned(),
        join_timeout: Duration::from_secs(20),
        peer_timeout: Duration::from_secs(20),
        stop: Arc::default(),
    }
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Runs `work` on every rank of a group of `world` processes-in-miniature.
fn with_tcp<T: Send>(world: usize, work: impl Fn(Tcp) -> T + Sync) -> Vec<T> {
    let (listener, address) = listen();
    let mut listener = Some(listener);
    std::thread::scope(|scope| {
        let mut ranks = Vec::new();
        for rank in 0..world {
            let (config, work, host) = (config(rank, world, &address), &work, listener.take());
            ranks.push(scope.spawn(move || {
                let joined = match host {
                    Some(listener) => Tcp::host(&config, listener),
                    None => Tcp::join(&config),
                };
                work(joined.unwrap())
            }));
        }
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn with_threads<T: Send>(world: usize, work: impl Fn(Threads) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let group = Threads::group(world, Duration::from_secs(20));
        let ranks: Vec<_> = group
            .into_iter()
            .map(|rank| {
                let work = &work;
                scope.spawn(move || work(rank))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn every_group_gives_the_bits_of_one_rank() {
    for units in [1, 2, 6, 16] {
        let solo = bits(&Solo.reduce_tree(partials(units, 0, 1, 1)).unwrap());
        for world in 1..=4 {
            let reduce = |group: &mut dyn Collective| {
                let own = partials(units, group.rank(), world, 1);
                bits(&group.reduce_tree(own).unwrap())
            };
            for found in with_tcp(world, |mut group| reduce(&mut group)) {
                assert_eq!(found, solo, "Tcp: {units} units on {world} ranks");
            }
            for found in with_threads(world, |mut group| reduce(&mut group)) {
                assert_eq!(found, solo, "Threads: {units} units on {world} ranks");
            }
        }
    }
}

#[test]
fn buffers_beyond_the_sockets_and_many_operations_do_not_block() {
    let solo = bits(&Solo.reduce_tree(partials(4, 0, 1, 4000)).unwrap());
    let all = with_tcp(2, |mut group| {
        for _ in 0..50 {
            group.barrier().unwrap();
        }
        let own = partials(4, group.rank(), 2, 4000);
        bits(&group.reduce_tree(own).unwrap())
    });
    assert!(all.iter().all(|found| *found == solo));
}

fn check_control(mut group: impl Collective) {
    let rank = group.rank();
    let large = vec![u8::try_from(rank).unwrap(); 3 << 20];
    let all = group.all_gather_bytes(&large).unwrap();
    for (from, bytes) in all.iter().enumerate() {
        assert_eq!(bytes.len(), large.len());
        assert!(bytes.iter().all(|&byte| usize::from(byte) == from));
    }
    let told = group.broadcast_bytes(2, format!("from {rank}").as_bytes()).unwrap();
    assert_eq!(told, b"from 2");
    group.agree("the job", b"same").unwrap();
    let odd = if rank == 1 { "odd" } else { "same" };
    let error = group.agree("the weights", odd.as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "the weights differs between the ranks: rank 1 not as on rank 0");
    assert_eq!(error.exit(), TrainerExit::Config);
}

#[test]
fn control_data_reaches_all() {
    with_tcp(3, check_control);
    with_threads(3, check_control);
}

#[test]
fn partial_sums_of_another_rank_are_refused() {
    let error = Solo.reduce_tree(partials(4, 0, 2, 1)).unwrap_err();
    assert!(matches!(error, CollectiveError::Share { rank: 0, world: 1 }), "{error}");
}

#[test]
fn ranks_that_run_different_operations_are_named() {
    let mistaken = |group: &mut dyn Collective| match group.rank() {
        0 => group.barrier().unwrap_err(),
        rank => group.reduce_tree(partials(2, rank, 2, 1)).unwrap_err(),
    };
    for error in with_threads(2, |mut group| mistaken(&mut group)) {
        assert!(matches!(error, CollectiveError::OutOfStep { .. }), "{error}");
    }
    let errors = with_tcp(2, |mut group| mistaken(&mut group));
    // The first rank that notices breaks up the group, so that the other does not wait forever.
    let noticed = |error: &CollectiveError| matches!(error, CollectiveError::OutOfStep { .. });
    assert!(errors.iter().any(noticed), "{errors:?}");
}

#[test]
fn a_rank_that_fails_on_its_own_is_the_culprit_everywhere() {
    let fail = |mut group: Box<dyn Collective>| {
        if group.rank() == 1 {
            // By then the others are past joining.
            std::thread::sleep(Duration::from_millis(300));
            return None;
        }
        group.barrier().unwrap_err().lost_peer()
    };
    assert_eq!(with_threads(3, |group| fail(Box::new(group))), [Some(1), None, Some(1)]);
    assert_eq!(with_tcp(4, |group| fail(Box::new(group))), [Some(1), None, Some(1), Some(1)]);
}

#[test]
fn a_thread_that_never_comes_is_named() {
    let mut group = Threads::group(2, Duration::from_millis(30));
    let error = group[0].barrier().unwrap_err();
    assert!(
        matches!(error, CollectiveError::PeerLost { rank: 1, cause: Cause::Silent { .. }, .. }),
        "{error}"
    );
}

// --- processes -------------------------------------------------------------------------------

const CHILD: &str = "QVL_TEST_COLLECTIVE_CHILD";

/// Starts rank `rank` as a process: this test binary, running only the test `name`, which finds
/// its place in the environment.
fn spawn(name: &str, rank: usize, world: usize, master: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("train::collective::tests::{name}"), "--exact", "--nocapture"])
        .env(CHILD, format!("{rank} {world} {master}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn child() -> Option<TcpConfig> {
    let place = std::env::var(CHILD).ok()?;
    let parts: Vec<_> = place.split(' ').collect();
    Some(config(parts[0].parse().unwrap(), parts[1].parse().unwrap(), parts[2]))
}

/// What a surviving child prints.
fn report(error: &CollectiveError) {
    println!("\nerror: {error}");
}

fn read_report(child: &mut Child) -> String {
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    output.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or(&output).to_owned()
}

/// Sums large gradients until the group breaks.
fn reduce_until_lost(group: &mut Tcp, after_first: impl FnOnce()) -> CollectiveError {
    let mut after_first = Some(after_first);
    let own = partials(4, group.rank(), group.world(), 1000);
    loop {
        match group.reduce_tree(own.clone()) {
            Err(error) => return error,
            Ok(_) => {
                if let Some(act) = after_first.take() {
                    act();
                }
            }
        }
    }
}

fn barrier_until_lost(group: &mut Tcp) -> CollectiveError {
    loop {
        if let Err(error) = group.barrier() {
            return error;
        }
    }
}

#[test]
fn all_survivors_name_a_killed_rank_within_a_second() {
    const NAME: &str = "all_survivors_name_a_killed_rank_within_a_second";
    if let Some(config) = child() {
        let mut group = Tcp::join(&config).unwrap();
        return report(&reduce_until_lost(&mut group, || {}));
    }
    let (listener, address) = listen();
    let mut children: Vec<_> = (1..4).map(|rank| spawn(NAME, rank, 4, &address)).collect();
    let mut group = Tcp::host(&config(0, 4, &address), listener).unwrap();
    let mut victim = children.pop().unwrap();
    let mut killed = None;
    let error = reduce_until_lost(&mut group, || {
        std::thread::sleep(Duration::from_millis(30));
        victim.kill().unwrap();
        killed = Some(Instant::now());
    });
    let seconds = killed.unwrap().elapsed().as_secs_f64();
    assert!(seconds < 1.0, "named after {seconds} s");
    assert_eq!((error.lost_peer(), error.exit()), (Some(3), TrainerExit::PeerLost), "{error}");
    drop(group);
    for mut survivor in children {
        let line = read_report(&mut survivor);
        assert!(line.starts_with("lost rank 3 (127.0.0.1:"), "{line}");
    }
    let seconds = killed.unwrap().elapsed().as_secs_f64();
    assert!(seconds < 2.0, "all ended after {seconds} s");
    victim.wait().unwrap();
}

#[test]
fn the_death_of_rank_0_is_named_too() {
    const NAME: &str = "the_death_of_rank_0_is_named_too";
    if let Some(config) = child() {
        // Rank 0 of the group is a child as well, and kills itself in the middle.
        let mut group = Tcp::join(&config).unwrap();
        let rank = config.rank;
        let error = reduce_until_lost(&mut group, || {
            if rank == 0 {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
            }
        });
        return report(&error);
    }
    let (listener, address) = listen();
    drop(listener);
    let mut children: Vec<_> = (0..3).map(|rank| spawn(NAME, rank, 3, &address)).collect();
    for survivor in &mut children[1..] {
        let line = read_report(survivor);
        assert!(line.starts_with(&format!("lost rank 0 ({address})")), "{line}");
    }
    children[0].wait().unwrap();
}

#[test]
fn a_frozen_rank_is_named_after_the_timeout() {
    const NAME: &str = "a_frozen_rank_is_named_after_the_timeout";
    let quick = |config| TcpConfig { peer_timeout: Duration::from_millis(600), ..config };
    if let Some(config) = child() {
        let mut group = Tcp::join(&quick(config)).unwrap();
        return report(&barrier_until_lost(&mut group));
    }
    let (listener, address) = listen();
    let mut children: Vec<_> = (1..3).map(|rank| spawn(NAME, rank, 3, &address)).collect();
    let mut group = Tcp::host(&quick(config(0, 3, &address)), listener).unwrap();
    // A rank that computes for longer than the timeout is not silent: its heartbeat goes on.
    std::thread::sleep(Duration::from_millis(900));
    group.barrier().unwrap();
    let frozen = nix::unistd::Pid::from_raw(i32::try_from(children[1].id()).unwrap());
    nix::sys::signal::kill(frozen, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    // The others wait for rank 0 in the second barrier, so one more may still be complete.
    let error = barrier_until_lost(&mut group);
    let seconds = start.elapsed().as_secs_f64();
    assert!((0.3..2.0).contains(&seconds), "named after {seconds} s");
    let line = read_report(&mut children[0]);
    for text in [error.to_string(), line] {
        assert!(text.starts_with("lost rank 2 "), "{text}");
        assert!(text.contains("it was silent for 0."), "{text}");
    }
    children[1].kill().unwrap();
    children[1].wait().unwrap();
}

#[test]
fn the_first_report_decides_for_all() {
    const NAME: &str = "the_first_report_decides_for_all";
    if let Some(config) = child() {
        let mut group = Tcp::join(&config).unwrap();
        return report(&barrier_until_lost(&mut group));
    }
    let (listener, address) = listen();
    let mut frozen = spawn(NAME, 3, 4, &address);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(frozen.id()).unwrap());
    let mut listener = Some(listener);
    std::thread::scope(|scope| {
        let mut ranks = Vec::new();
        for rank in 0..3 {
            let mut config = config(rank, 4, &address);
            // Only rank 1 would notice the silence by itself within the time of this test.
            if rank == 1 {
                config.peer_timeout = Duration::from_secs(1);
            }
            let host = listener.take();
            ranks.push(scope.spawn(move || {
                let joined = match host {
                    Some(listener) => Tcp::host(&config, listener),
                    None => Tcp::join(&config),
                };
                let mut group = joined.unwrap();
                // By then all are past joining.
                std::thread::sleep(Duration::from_millis(300));
                let start = Instant::now();
                if rank == 0 {
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
                }
                if rank < 2 {
                    // They compute; that they learn of the loss and tell it must not wait.
                    std::thread::sleep(Duration::from_secs(3));
                }
                let error = barrier_until_lost(&mut group);
                (rank, error, start.elapsed().as_secs_f64())
            }));
        }
        for rank in ranks {
            let (rank, error, seconds) = rank.join().unwrap();
            assert_eq!(error.lost_peer(), Some(3), "{error}");
            assert!(error.to_string().contains("it was silent for 1."), "{error}");
            assert!(rank < 2 || seconds < 2.5, "rank {rank} knew after {seconds} s");
        }
    });
    frozen.kill().unwrap();
    frozen.wait().unwrap();
}

// --- rendezvous ------------------------------------------------------------------------------

#[test]
fn strangers_do_not_disturb_the_group() {
    let (listener, address) = listen();
    std::thread::scope(|scope| {
        let host = scope.spawn(|| Tcp::host(&config(0, 2, &address), listener));
        let mut open = Vec::new();
        // Noise, a request of another protocol, a frame that claims 4 GiB, silence, a hang-up.
        let mut huge = b"QVL1\x01\x01\x00\x00".to_vec();
        huge.extend([0; 12]);
        huge.extend(u32::MAX.to_le_bytes());
        huge.extend([0; 4]);
        for noise in [&[0xff; 4096][..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &huge, b"", b"QVL1"]
        {
            let mut stranger = TcpStream::connect(&address).unwrap();
            stranger.write_all(noise).unwrap();
            open.push(stranger);
        }
        drop(open.pop());
        let refuse = |change: fn(&mut TcpConfig)| {
            let mut stranger = config(1, 2, &address);
            change(&mut stranger);
            let error = Tcp::join(&stranger).unwrap_err();
            assert_eq!(error.exit(), TrainerExit::Config);
            let CollectiveError::Refused { reason, .. } = error else { panic!("{error}") };
            reason
        };
        assert_eq!(refuse(|config| config.token = "guessed".to_owned()), "wrong token");
        assert_eq!(refuse(|config| config.world = 3), "the world size is 3, expected 2");
        assert_eq!(refuse(|config| config.attempt = 1), "the attempt is 1, expected 2");
        assert_eq!(
            refuse(|config| config.job = "x".to_owned()),
            "the job hash is x, expected job hash"
        );
        assert_eq!(
            refuse(|config| (config.rank, config.world) = (7, 2)),
            "rank 7 is not expected here"
        );
        let mut peer = Tcp::join(&config(1, 2, &address)).unwrap();
        let mut host = host.join().unwrap().unwrap();
        let late = TcpStream::connect(&address);
        assert!(late.is_err(), "nobody can call a complete group");
        let barrier = scope.spawn(move || host.barrier());
        peer.barrier().unwrap();
        barrier.join().unwrap().unwrap();
    });
}

#[test]
fn a_second_process_with_the_same_rank_is_refused() {
    const NAME: &str = "a_second_process_with_the_same_rank_is_refused";
    if let Some(config) = child() {
        return report(&Tcp::join(&config).unwrap_err());
    }
    let (listener, address) = listen();
    std::thread::scope(|scope| {
        let host = scope.spawn(|| Tcp::host(&config(0, 3, &address), listener));
        let first = scope.spawn(|| Tcp::join(&config(1, 3, &address)));
        std::thread::sleep(Duration::from_millis(300));
        let line = read_report(&mut spawn(NAME, 1, 3, &address));
        let expected = format!("the rank at {address} refused rank 1: rank 1 has joined already");
        assert_eq!(line, expected);
        let third = scope.spawn(|| Tcp::join(&config(2, 3, &address)));
        let ranks = [host, first, third].map(|rank| rank.join().unwrap().map(|tcp| tcp.rank()));
        assert_eq!(ranks.map(Result::unwrap), [0, 1, 2]);
    });
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let (_listener, address) = listen();
    let error = Tcp::join(&config(0, 2, &address)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("rank 0 cannot listen on {address}: the port is taken by another process")
    );
    assert!(error.hint().unwrap().contains("MASTER_PORT"));
}

#[test]
fn ranks_that_never_come_are_named() {
    let (listener, address) = listen();
    let mut short = config(0, 3, &address);
    short.join_timeout = Duration::from_millis(300);
    let _stranger = TcpStream::connect(&address).unwrap().write_all(&[b'x'; 100]);
    let error = Tcp::host(&short, listener).unwrap_err();
    assert_eq!(error.lost_peer(), Some(1));
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("ranks 1, 2 did not join at {address} within 0.3 s")),
        "{text}"
    );
    assert!(text.contains("where a frame begins"), "{text}");
}

#[test]
fn a_master_that_is_not_there_is_an_error_in_time() {
    let (listener, address) = listen();
    drop(listener);
    let mut short = config(1, 2, &address);
    short.join_timeout = Duration::from_millis(300);
    let start = Instant::now();
    let error = Tcp::join(&short).unwrap_err();
    assert!(matches!(error, CollectiveError::NoMaster { rank: 1, .. }), "{error}");
    assert_eq!((error.exit(), error.lost_peer()), (TrainerExit::PeerLost, Some(0)));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_rank_that_waits_for_the_others_ends_on_request() {
    let (listener, address) = listen();
    let (host, peer) = (config(0, 3, &address), config(1, 3, &address));
    let absent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let lonely = config(1, 3, &absent);
    let stops = [&host, &peer, &lonely].map(|config| Arc::clone(&config.stop));
    std::thread::scope(|scope| {
        let waiting = [
            scope.spawn(|| Tcp::host(&host, listener).map(|_group| ())),
            scope.spawn(|| Tcp::join(&peer).map(|_group| ())),
            scope.spawn(|| Tcp::join(&lonely).map(|_group| ())),
        ];
        std::thread::sleep(Duration::from_millis(200));
        assert!(waiting.iter().all(|rank| !rank.is_finished()), "rank 2 never comes");
        let start = Instant::now();
        // The host ends last: else its peer would notice that.
        for (rank, stop) in [(2, &stops[2]), (1, &stops[1]), (0, &stops[0])] {
            stop.store(true, Ordering::Relaxed);
            while !waiting[rank].is_finished() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for rank in waiting {
            let error = rank.join().unwrap().unwrap_err();
            assert_eq!(error.exit(), TrainerExit::Preempted, "{error}");
            assert!(error.to_string().contains("was asked to stop while it waited"), "{error}");
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    });
}
