//! Properties of cuts and schedules: pure, no device.

use runahead::dims::GRANULE;
use runahead::runahead::partition::{Split, n_granules, weighted};
use runahead::runahead::schedule::{Mode, Schedule};

/// Every (past, len, adapters) that the properties are checked for.
fn cases() -> impl Iterator<Item = (usize, usize, usize)> {
    let pasts = [0, 1, 15, 16, 17, 300, 4095];
    let lens = [1, 2, 15, 16, 17, 31, 32, 33, 100, 257, 1024, 5000];
    pasts.into_iter().flat_map(move |p| lens.into_iter().flat_map(move |l| (1..=8).map(move |n| (p, l, n))))
}

pub fn assert_sound(past: usize, len: usize, lengths: &[usize]) {
    assert_eq!(lengths.iter().sum::<usize>(), len, "past {past} len {len}: {lengths:?}");
    let mut at = past;
    for (i, &n) in lengths.iter().enumerate() {
        assert!(n > 0, "past {past} len {len}: {lengths:?}");
        at += n;
        assert!(
            i + 1 == lengths.len() || at.is_multiple_of(GRANULE),
            "past {past} len {len}: {lengths:?} cuts at {at}"
        );
    }
}

#[test]
fn even_cuts_add_up_are_aligned_and_never_empty() {
    for (past, len, n) in cases() {
        let lengths = Split::Even.lengths(past, len, n).unwrap();
        assert_sound(past, len, &lengths);
        assert_eq!(lengths.len(), n.min(n_granules(past, len)));
        let granules: Vec<usize> = lengths
            .iter()
            .scan(past, |at, &l| {
                let g = n_granules(*at, l);
                *at += l;
                Some(g)
            })
            .collect();
        let (least, most) = (granules.iter().min().unwrap(), granules.iter().max().unwrap());
        assert!(most - least <= 1, "past {past} len {len} n {n}: {granules:?}");
    }
}

#[test]
fn weighted_cuts_follow_the_weights_within_a_granule() {
    for (past, len, n) in cases() {
        let weights: Vec<f64> = (0..n).map(|i| 1.0 / (i + 1) as f64).collect();
        let lengths = weighted(past, len, &weights);
        assert_sound(past, len, &lengths);
        if n_granules(past, len) >= 8 * n {
            let total: f64 = weights.iter().sum();
            for (l, w) in lengths.iter().zip(&weights) {
                let want = len as f64 * w / total;
                assert!((*l as f64 - want).abs() <= 2.5 * GRANULE as f64, "past {past} len {len}: {lengths:?}, {want}");
            }
        }
    }
}

#[test]
fn given_cuts_must_hold() {
    let ok = |past, len, lengths: &[usize]| Split::Given(lengths.to_vec()).lengths(past, len, 3).is_ok();
    assert!(ok(0, 100, &[32, 32, 36]));
    assert!(ok(1, 99, &[31, 32, 36]));
    assert!(!ok(1, 100, &[32, 32, 36]), "cut at 33");
    assert!(!ok(0, 100, &[32, 32, 32]), "sum");
    assert!(!ok(0, 100, &[64, 36]), "count");
    assert!(!ok(0, 100, &[64, 0, 36]), "empty piece");
    assert!(!ok(0, 100, &[usize::MAX, 32, 69]), "overflow");
    assert!(Split::Even.lengths(0, 0, 3).is_err(), "empty prompt");
}

#[test]
fn schedules_hold_and_wrong_ones_are_refused() {
    for (past, len, n) in cases() {
        let lengths = Split::Even.lengths(past, len, n).unwrap();
        let schedule = Schedule::runahead(past, &lengths, 4);
        schedule.validate().unwrap();
        assert_eq!(schedule.n_tokens(), len);
        let last = schedule.n_adapters() - 1;
        assert!(schedule.holds_past[last] && schedule.readers(last).next().is_none());
        // Direct hand-off, as in the paper's arithmetic: received rows are the prefixes' sum, each piece is published once.
        let received: usize = schedule.needs.iter().flatten().map(|&p| schedule.pieces[p].len()).sum();
        let prefixes: usize = lengths.iter().enumerate().map(|(j, l)| (last - j) * l).sum();
        assert_eq!(received, prefixes);
    }
    let good = Schedule::runahead(0, &[32, 32, 20], 4);
    let mut lost = good.clone();
    lost.needs[2] = vec![1];
    let mut twice = good.clone();
    twice.share[0] = vec![0, 1];
    let mut gap = good.clone();
    gap.pieces[1].start += 16;
    for wrong in [lost, twice, gap] {
        assert!(wrong.validate().is_err(), "{wrong:?}");
    }
}

#[test]
fn every_mode_makes_schedules_that_hold() {
    for (past, len, n) in cases() {
        for mode in Mode::ALL {
            let lengths = Split::Even.lengths(past, len, mode.n_pieces(n)).unwrap();
            let schedule = mode.schedule(past, &lengths, 4);
            schedule.validate().unwrap_or_else(|e| panic!("{mode} past {past} len {len} n {n}: {e}"));
            assert_eq!(schedule.n_tokens(), len);
            assert!(schedule.n_adapters() <= n);
            // What is handed on is what is needed, once for each reader.
            let sent: usize = (0..schedule.n_adapters()).flat_map(|i| schedule.sends(i)).map(|(_, to)| to.len()).sum();
            assert_eq!(sent, schedule.needs.iter().map(Vec::len).sum::<usize>(), "{mode}");
        }
    }
    assert!("ring".parse::<Mode>().is_err());
    assert!(Mode::ALL.into_iter().all(|m| m.name().parse::<Mode>().is_ok_and(|n| n == m)));
}

#[test]
fn modes_differ_in_what_they_read_and_compute() {
    let even = [4, 4, 4, 4].map(|g| g * GRANULE);
    let zigzag = Schedule::zigzag(0, &[GRANULE; 6], 2);
    assert_eq!(zigzag.share, [vec![2, 3], vec![1, 4], vec![0, 5]]);
    assert_eq!(zigzag.needs[2], [1, 2, 3, 4]);
    let scores = |s: &Schedule| (0..s.n_adapters()).map(|i| s.n_scores(i, 0)).collect::<Vec<_>>();
    assert!(scores(&zigzag).windows(2).all(|w| w[0] == w[1]), "front and back together are equal work");
    let n = 16 * GRANULE as u64;
    assert_eq!(scores(&Schedule::tsp(0, &even, 2)), [n * n / 4; 4]);
    assert_eq!(scores(&Schedule::tsp_causal(0, &even, 2)).iter().sum::<u64>(), n * (n + 1) / 2);
    assert_eq!(Schedule::relay(0, &even, 2).sends(2), [(0, vec![3]), (1, vec![3]), (2, vec![3])]);
    assert_eq!(Schedule::runahead(0, &even, 2).sends(0), [(0, vec![1, 2, 3])]);

    let mut relay = Schedule::relay(0, &even, 2);
    relay.needs[1].clear();
    let mut dense = Schedule::tsp(0, &even, 2);
    dense.needs[0].pop();
    let mut last = Schedule::tsp_causal(0, &even, 2);
    last.share.swap(0, 3);
    last.needs.swap(0, 3);
    for wrong in [relay, dense, last] {
        assert!(wrong.validate().is_err(), "{wrong:?}");
    }
}
