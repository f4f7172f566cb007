//! Verdicts over texts and times.

use super::*;
use crate::console::LineReader;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn criteria(expects: &[&str]) -> Criteria {
    let step = |source: &&str| Step {
        expect: Pattern::new(source).unwrap(),
        send: None,
    };
    Criteria {
        steps: expects.iter().map(step).collect(),
        rejects: Vec::new(),
        ignored: Vec::new(),
        end: End::None,
        timeout: Duration::from_secs(60),
        quiet_timeout: None,
        has_command: false,
    }
}

fn patterns(sources: &[&str]) -> Vec<Pattern> {
    let pattern = |source: &&str| Pattern::new(source).unwrap();
    sources.iter().map(pattern).collect()
}

/// Feeds pieces of a stream, a millisecond each, and ends the guest.
fn judged<'a>(
    criteria: Criteria,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    end: &GuestEnd,
) -> (Verdict, Vec<Input>) {
    let mut judge = Judge::new(criteria, Duration::ZERO);
    let mut reader = LineReader::default();
    let mut inputs = Vec::new();
    for (index, piece) in (0..).zip(pieces) {
        let now = ms(index / 1000);
        reader.feed(piece, &mut |piece| judge.see(now, 0, piece));
        inputs.extend(judge.take_inputs());
    }
    reader.finish(&mut |piece| judge.see(ms(500), 0, piece));
    judge.guest_ended(end);
    (judge.into_verdict().0, inputs)
}

fn failure(verdict: Verdict) -> Failure {
    match verdict {
        Verdict::Failed(failure) => failure,
        Verdict::Passed => panic!("passed"),
    }
}

fn verdict_of(criteria: Criteria, text: &str, end: &GuestEnd) -> Verdict {
    judged(criteria, [text.as_bytes()], end).0
}

fn reason_of(criteria: Criteria, text: &str, end: &GuestEnd) -> (u8, String) {
    let failure = failure(verdict_of(criteria, text, end));
    (failure.kind.exit_code(), failure.reason)
}

#[test]
fn a_stream_cut_anywhere_gives_the_same_verdict_and_the_same_input() {
    let stream =
        "boot\r\n\x1b[1;32mready\x1b[0m: caf\u{e9} \u{20ac}\r\ndebian login: \x1b[?25h".as_bytes();
    let rejecting: [&[u8]; 6] = [
        "boot\r\nfirst second bad third\r\nmore".as_bytes(),
        "\x1b[31mbad\x1b[0m first\r\nsecond third\n".as_bytes(),
        "[    1.0] Kernel panic - not syncing: first second bad\r\nthird\n".as_bytes(),
        b"first\xe2\x82second\r\nthird bad",
        b"first\n[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on second\r\nthird\n",
        b"[    9.0] BUG: soft lockup - CPU#0 stuck for 26s!\r\n[    9.1] Kernel panic - not syncing: softlockup\n",
    ];
    let ways = |bytes: &'static [u8], make: &dyn Fn() -> Criteria| {
        let whole = judged(make(), [bytes], &GuestEnd::PoweredOff);
        for cut in 0..=bytes.len() {
            let pieces = [&bytes[..cut], &bytes[cut..]];
            let this = judged(make(), pieces, &GuestEnd::PoweredOff);
            assert_eq!(this, whole, "{} cut at {cut}", bytes.escape_ascii());
        }
        assert_eq!(
            judged(make(), bytes.chunks(1), &GuestEnd::PoweredOff),
            whole
        );
        whole
    };
    let answering = || {
        let mut criteria = criteria(&["^ready: café €$", "login: "]);
        criteria.steps[1].send = Some(b"root\n".to_vec());
        criteria
    };
    let leaked: &'static [u8] = stream.to_vec().leak();
    let (verdict, inputs) = ways(leaked, &answering);
    assert_eq!(verdict, Verdict::Passed);
    assert_eq!((inputs.len(), &inputs[0].bytes[..]), (1, &b"root\n"[..]));
    for bytes in rejecting {
        let bytes: &'static [u8] = bytes.to_vec().leak();
        let rejecting = || Criteria {
            rejects: patterns(&["bad"]),
            ..criteria(&["first", "second", "third"])
        };
        ways(bytes, &rejecting);
    }
}

#[test]
fn expectations_are_met_in_order() {
    let off = &GuestEnd::PoweredOff;
    assert_eq!(
        verdict_of(criteria(&["a", "b"]), "a\nb\n", off),
        Verdict::Passed
    );
    assert_eq!(
        verdict_of(criteria(&["a", "b"]), "xaxb", off),
        Verdict::Passed
    );
    assert_eq!(
        reason_of(criteria(&["a", "b"]), "b\na\n", off),
        (
            20,
            "the guest powered off, and expectation 2 of 2, /b/, was not met".into()
        )
    );
    assert_eq!(
        reason_of(criteria(&["a", "a"]), "a\n", off).0,
        20,
        "one text meets one expectation"
    );
}

#[test]
fn the_end_must_be_the_one_asked_for() {
    let with_end = |end| Criteria {
        end,
        ..criteria(&["a"])
    };
    let reset = GuestEnd::Reset { resets: 1 };
    let ends = [GuestEnd::PoweredOff, reset.clone(), GuestEnd::Panicked];
    for (index, wanted) in [End::PowerOff, End::Reboot, End::Panic]
        .into_iter()
        .enumerate()
    {
        for (other, end) in ends.iter().enumerate() {
            let verdict = verdict_of(with_end(wanted), "a\n", end);
            assert_eq!(
                verdict == Verdict::Passed,
                index == other,
                "{wanted:?}, {end:?}"
            );
        }
    }
    assert_eq!(
        reason_of(with_end(End::PowerOff), "", &reset),
        (
            20,
            "the guest was reset, and was to power off; the expectation /a/ was not met".into()
        )
    );
    assert_eq!(
        reason_of(with_end(End::Reboot), "a\n", &GuestEnd::Panicked),
        (11, "the guest panicked".into())
    );
    assert_eq!(
        reason_of(with_end(End::Panic), "", &GuestEnd::Panicked),
        (
            20,
            "the guest panicked, and the expectation /a/ was not met".into()
        )
    );
    assert_eq!(
        reason_of(
            with_end(End::PowerOff),
            "a\n",
            &GuestEnd::Reset { resets: 2 }
        ),
        (
            12,
            "the guest is in a reset loop: it was reset 2 times".into()
        )
    );
    assert_eq!(
        reason_of(
            criteria(&["a"]),
            "",
            &GuestEnd::Crashed("triple fault".into())
        ),
        (12, "the guest crashed: triple fault".into())
    );
    let crash = GuestEnd::Crashed("triple fault\nrip 0\n".into());
    let crashed = failure(verdict_of(criteria(&["x"]), "last\n", &crash));
    assert_eq!(crashed.reason, "the guest crashed: triple fault");
    assert_eq!(crashed.quote, ["last", "rip 0"]);
    assert_eq!(reason_of(criteria(&["a"]), "", &GuestEnd::Stopped).0, 1);
}

#[test]
fn a_rejected_line_is_quoted_as_a_whole() {
    let rejecting = Criteria {
        rejects: patterns(&["Segfault"]),
        ..criteria(&["done"])
    };
    let text = "one\ntwo\nSegfault at 7\ndone\n";
    let failure = failure(verdict_of(rejecting, text, &GuestEnd::PoweredOff));
    assert_eq!(failure.kind, FailureKind::Rejected);
    assert_eq!(failure.quote, ["one", "two", "Segfault at 7"]);
}

const PANIC: &str = "[    1.0] before\n[    1.1] Kernel panic - not syncing: sysrq triggered crash\n\
    [    1.1] Call Trace:\n[    1.2] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n";

/// What a judge makes of a text, and when, without the guest's end: by its own clock.
fn decided_at(criteria: Criteria, text: &str) -> (Verdict, Duration) {
    let mut judge = Judge::new(criteria, Duration::ZERO);
    LineReader::default().feed(text.as_bytes(), &mut |piece| judge.see(ms(10), 0, piece));
    let mut now = ms(10);
    while !judge.is_decided() {
        now = judge.deadline().unwrap();
        judge.tick(now);
    }
    (judge.into_verdict().0, now)
}

#[test]
fn a_panic_ends_the_run_when_all_of_it_is_told() {
    let (verdict, time) = decided_at(criteria(&["login"]), PANIC);
    let failure = failure(verdict);
    assert_eq!((failure.kind, time), (FailureKind::Panicked, ms(10)));
    assert_eq!(failure.quote.len(), 4);
}

#[test]
fn a_death_that_goes_on_talking_or_says_no_more_ends_the_run_soon() {
    let oops = "[    1.1] Oops: 0002 [#1] PREEMPT SMP\n";
    let (verdict, time) = decided_at(criteria(&["x"]), oops);
    assert_eq!(failure(verdict).kind, FailureKind::Panicked);
    assert_eq!(time, ms(10) + AFTERMATH_PAUSE);

    let mut judge = Judge::new(criteria(&["x"]), Duration::ZERO);
    let mut reader = LineReader::default();
    let mut now = ms(10);
    reader.feed(oops.as_bytes(), &mut |piece| judge.see(now, 0, piece));
    while !judge.is_decided() {
        now += ms(50);
        assert!(now < ms(1100));
        reader.feed(b"trace\n", &mut |piece| judge.see(now, 0, piece));
        judge.tick(now);
    }
}

#[test]
fn a_panic_can_be_what_is_asked_for() {
    let panicking = |expects| Criteria {
        end: End::Panic,
        ..criteria(expects)
    };
    assert_eq!(
        decided_at(panicking(&["sysrq triggered"]), PANIC),
        (Verdict::Passed, ms(10))
    );
    let (verdict, _) = decided_at(panicking(&["something else"]), PANIC);
    assert_eq!(failure(verdict).kind, FailureKind::Expectation);
    // The oops before a panic is part of it; without a panic it is not.
    let oops = "[    1.0] Oops: 0000 [#1]\n[    1.0] ---[ end trace 0 ]---\n";
    let both = format!("{oops}{PANIC}");
    assert_eq!(decided_at(panicking(&[]), &both).0, Verdict::Passed);
    assert_eq!(
        failure(decided_at(panicking(&[]), oops).0).kind,
        FailureKind::Panicked
    );
}

#[test]
fn a_death_may_be_ignored() {
    let ignoring = Criteria {
        ignored: patterns(&["lkdtm"]),
        ..criteria(&["done"])
    };
    let text = "[    1.0] kernel BUG at drivers/misc/lkdtm/bugs.c:105!\ndone\n";
    assert_eq!(
        verdict_of(ignoring, text, &GuestEnd::PoweredOff),
        Verdict::Passed
    );
}

#[test]
fn time_and_silence() {
    let (verdict, time) = decided_at(criteria(&["x"]), "y\n");
    let told = failure(verdict);
    assert_eq!((told.kind, time), (FailureKind::Timeout, ms(60_000)));
    assert_eq!(
        told.reason,
        "time ran out after 60 s: the expectation /x/ was not met"
    );
    let impatient = || Criteria {
        quiet_timeout: Some(ms(2000)),
        ..criteria(&["x"])
    };
    let (verdict, time) = decided_at(impatient(), "y\n");
    assert_eq!(time, ms(2010));
    assert_eq!(
        failure(verdict).reason,
        "the guest printed nothing for 2 s: the expectation /x/ was not met"
    );
    let (verdict, time) = decided_at(impatient(), "");
    assert_eq!(time, ms(2000));
    assert!(failure(verdict).reason.contains("since it was started"));
}

#[test]
fn a_command_decides_too() {
    let commanding = |end| Criteria {
        has_command: true,
        end,
        ..criteria(&[])
    };
    let run = |criteria, command, end: &GuestEnd| {
        let mut judge = Judge::new(criteria, Duration::ZERO);
        if let Some(command) = command {
            judge.command_ended(ms(1), command);
        }
        judge.guest_ended(end);
        judge.into_verdict().0
    };
    let off = &GuestEnd::PoweredOff;
    let done = Some(CommandEnd::Exited(0));
    assert_eq!(
        run(commanding(End::PowerOff), done.clone(), off),
        Verdict::Passed
    );
    assert_eq!(
        run(commanding(End::None), done, &GuestEnd::Stopped),
        Verdict::Passed
    );
    let failed = run(commanding(End::PowerOff), Some(CommandEnd::Exited(7)), off);
    assert_eq!(
        (failed.exit_code(), failure(failed).reason),
        (23, "the guest's command exited with status 7".into())
    );
    let lost = failure(run(commanding(End::PowerOff), None, off));
    assert_eq!(
        lost.reason,
        "the guest powered off, and the guest's command did not end"
    );
}

#[test]
fn milestones_are_told_with_their_times() {
    let mut judge = Judge::new(criteria(&["up"]), ms(3));
    let mut reader = LineReader::default();
    let text = b"[    0.5] Run /init as init process\nup\n";
    reader.feed(text, &mut |piece| judge.see(ms(9), 0, piece));
    let (_, milestones, _) = judge.into_verdict();
    let names: Vec<_> = milestones.iter().map(|one| one.name.as_str()).collect();
    let expected = [
        "kernel-entered",
        "first-output",
        "init-started",
        "expectation-1",
    ];
    assert_eq!(names, expected);
    assert_eq!((milestones[0].time, milestones[3].time), (ms(3), ms(9)));
}
