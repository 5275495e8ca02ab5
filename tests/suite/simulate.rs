//! The simulator against the paper's arithmetic, and the properties of everything that is built on it: pure, no device.

use runahead::cancel::Cancel;
use runahead::dims::GRANULE;
use runahead::error::{Error, Result};
use runahead::runahead::cost::{CostModel, Lane, Rates, Shape};
use runahead::runahead::noise::Noise;
use runahead::runahead::partition::Split;
use runahead::runahead::schedule::{Mask, Mode, Schedule};
use runahead::runahead::search::{Problem, balanced, search, search_simulated};
use runahead::runahead::simulate::{Forecast, simulate};

const TERA: f64 = 1e12;
const GIGA: f64 = 1e9;

/// Equal adapters of 200 TFLOP/s in products and attention, on links of this bandwidth (`None`: free of cost).
fn adapters(n: usize, shape: &Shape, bandwidth: Option<f64>) -> CostModel {
    let lane = Lane { bandwidth, ..Lane::default() };
    unequal(&vec![200.0; n], shape, lane)
}

fn unequal(tflops: &[f64], shape: &Shape, lane: Lane) -> CostModel {
    let cost = |&speed: &f64| {
        let rates = Rates {
            name: format!("{speed}"),
            product_flops: speed * TERA,
            attention_flops: speed * TERA,
            half_speed_tokens: 0.0,
            decode_s: None,
            down: lane,
            up: lane,
        };
        rates.costs(shape).unwrap()
    };
    CostModel {
        adapters: tflops.iter().map(cost).collect(),
        kv_bytes: shape.kv_bytes(2),
        windows: Vec::new(),
        hub: None,
    }
}

fn llama() -> Shape {
    Shape::named("llama-7b").unwrap()
}

fn even(mode: Mode, costs: &CostModel, len: usize) -> Forecast {
    let lengths = Split::Even.lengths(0, len, mode.n_pieces(costs.adapters.len())).unwrap();
    simulate(&mode.schedule(0, &lengths, llama().layers), costs).unwrap()
}

fn assert_near(got: f64, want: f64, what: &str) {
    assert!((got / want - 1.0).abs() < 0.01, "{what}: {got}, expected {want}");
}

#[test]
fn dense_tsp_over_the_searched_chain_is_as_the_operations_say() {
    for (context, ratio) in [(4096, 1.08), (8192, 1.14), (16_384, 1.25), (32_768, 1.40), (131_072, 1.73)] {
        // Cuts fall between granules: of shorter pieces one is more than the tolerance.
        for p in [2, 4, 8].into_iter().filter(|p| context / p >= 128 * GRANULE) {
            let costs = adapters(p, &llama(), None);
            let chain = search_simulated(Mode::Runahead, &costs, 0, context, 32).unwrap();
            let tsp = even(Mode::Tsp, &costs, context);
            assert_near(tsp.ttft_s / chain.seconds, ratio, &format!("{context} tokens, {p} adapters"));
        }
    }
}

#[test]
fn even_chains_gain_what_the_operations_say() {
    for (p, at_16k, at_128k) in [(2, 1.11, 1.27), (4, 1.05, 1.12), (8, 1.03, 1.06)] {
        let costs = adapters(p, &llama(), None);
        for (context, ratio) in [(16_384, at_16k), (131_072, at_128k)] {
            let gain = even(Mode::Tsp, &costs, context).ttft_s / even(Mode::Runahead, &costs, context).ttft_s;
            assert_near(gain, ratio, &format!("{context} tokens, {p} adapters"));
        }
    }
}

#[test]
fn without_a_causal_kernel_the_searched_chain_gains_less() {
    for (p, at_16k, at_128k) in [(2, 1.11, 1.25), (4, 1.18, 1.44), (8, 1.21, 1.56)] {
        let costs = adapters(p, &llama(), None);
        for (context, ratio) in [(16_384, at_16k), (131_072, at_128k)] {
            let mut objective = |lengths: &[usize]| {
                let schedule = Schedule { mask: Mask::BlockThenMask, ..Schedule::runahead(0, lengths, 32) };
                Ok(simulate(&schedule, &costs)?.ttft_s)
            };
            let problem = Problem::exact(0, context, p, Vec::new());
            let chain = search(&problem, &Cancel::new(), &mut objective, &mut |_| {}).unwrap();
            let tsp = even(Mode::Tsp, &costs, context);
            assert_near(tsp.ttft_s / chain.seconds, ratio, &format!("{context} tokens, {p} adapters"));
        }
    }
}

#[test]
fn balanced_pieces_are_the_papers_arithmetic() {
    let costs = adapters(4, &llama(), None);
    let pieces = [
        (4096, [0.265, 0.254, 0.245, 0.236]),
        (8192, [0.279, 0.257, 0.239, 0.225]),
        (16_384, [0.303, 0.259, 0.230, 0.209]),
        (32_768, [0.339, 0.257, 0.215, 0.189]),
        (131_072, [0.428, 0.235, 0.183, 0.155]),
    ];
    for (context, want) in pieces {
        let got = balanced(&costs, 0, context);
        assert_near(got.iter().sum(), context as f64, "sum");
        for (got, want) in got.iter().zip(want) {
            assert_near(got / context as f64, want, &format!("{context} tokens"));
        }
    }
}

#[test]
fn zigzag_has_the_chains_balance_and_not_its_independence() {
    // With transfers free the operations are the same; on slow links the chain hides what the barrier shows.
    let free = adapters(4, &llama(), None);
    let chain = |costs: &CostModel| search_simulated(Mode::Runahead, costs, 0, 16_384, 32).unwrap().seconds;
    assert_near(even(Mode::Zigzag, &free, 16_384).ttft_s, chain(&free), "free transfers");
    let slow = adapters(4, &llama(), Some(10.0 * GIGA));
    assert!(even(Mode::Zigzag, &slow, 16_384).ttft_s > 1.1 * chain(&slow));
}

#[test]
fn nine_tokens_over_three_adapters() {
    let scores = |s: &Schedule| (0..3).map(|i| s.n_scores(i, 0)).collect::<Vec<_>>();
    let chain = Schedule::runahead(0, &[4, 3, 2], 2);
    assert_eq!(scores(&chain), [10, 18, 17]);
    assert_eq!(scores(&Schedule { mask: Mask::BlockThenMask, ..chain }), [16, 21, 18]);
    assert_eq!(scores(&Schedule::tsp(0, &[3, 3, 3], 2)), [27; 3]);
    // K and V vectors that adapters receive in a layer; in the last one only the last adapter does, so one layer more is what counts.
    let costs = CostModel { kv_bytes: 2.0, ..adapters(3, &llama(), None) };
    let received = |mode: Mode, lengths: &[usize]| -> f64 {
        let all = |n_layers| -> f64 {
            let forecast = simulate(&mode.schedule(0, lengths, n_layers), &costs).unwrap();
            forecast.adapters.iter().map(|a| a.fetched_bytes).sum()
        };
        all(2) - all(1)
    };
    assert_eq!(received(Mode::Tsp, &[3, 3, 3]), 36.0);
    assert_eq!(received(Mode::Relay, &[4, 3, 2]), 22.0);
    assert_eq!(received(Mode::Runahead, &[4, 3, 2]), 22.0);
}

#[test]
fn traffic_is_the_papers_arithmetic() {
    // One layer more: what its rows cost on the way, in tokens.
    let costs = |p| CostModel { kv_bytes: 1.0, ..adapters(p, &llama(), None) };
    let of_a_layer = |schedule: &Schedule| {
        let run = |n| simulate(&Schedule { layers: 0..n, ..schedule.clone() }, &costs(schedule.n_adapters())).unwrap();
        let (two, three) = (run(2), run(3));
        let more = |of: fn(&runahead::runahead::simulate::AdapterForecast) -> f64| -> Vec<f64> {
            two.adapters.iter().zip(&three.adapters).map(|(a, b)| of(b) - of(a)).collect()
        };
        (more(|a| a.published_bytes), more(|a| a.fetched_bytes))
    };
    let c = 8192.0;
    for p in [2usize, 4, 8] {
        let n = Split::Even.lengths(0, 8192, p).unwrap();
        let (p, last) = (p as f64, c / p as f64);
        let (_, tsp) = of_a_layer(&Schedule::tsp(0, &n, 3));
        assert_eq!(tsp.iter().sum::<f64>(), (p - 1.0) * c);
        assert_eq!(tsp.iter().fold(0.0, |a, &b| f64::max(a, b)), (p - 1.0) * c / p);
        let (direct_out, direct_in) = of_a_layer(&Schedule::runahead(0, &n, 3));
        let (relay_out, relay_in) = of_a_layer(&Schedule::relay(0, &n, 3));
        assert_eq!(direct_in.iter().sum::<f64>(), (p - 1.0) * c / 2.0);
        assert_eq!(relay_in, direct_in);
        assert_eq!(direct_out.iter().sum::<f64>(), c - last, "each piece leaves once");
        assert_eq!(relay_out.iter().sum::<f64>(), (p - 1.0) * c / 2.0, "growing prefixes");
        assert_eq!(direct_in.last(), Some(&(c - last)), "the busiest link");
    }
}

#[test]
fn rectangular_blocks_cover_what_they_should() {
    for (p, covered) in [(2, 0.75), (4, 0.625), (8, 0.5625)] {
        let n = Split::Even.lengths(0, 16_384, p).unwrap();
        let share = |mask| {
            let s = Schedule { mask, ..Schedule::runahead(0, &n, 1) };
            (0..p).map(|i| s.n_scores(i, 0)).sum::<u64>() as f64 / 16_384f64.powi(2)
        };
        assert_near(share(Mask::BlockThenMask), covered, "blocks");
        assert_near(share(Mask::Causal), 0.5, "causal");
        assert_near(share(Mask::DenseThenMask), 1.0, "dense");
    }
}

#[test]
fn the_first_token_never_comes_sooner_on_a_slower_link() {
    let shape = llama();
    for mode in Mode::ALL {
        let n = if mode == Mode::Single { 1 } else { 4 };
        for noise in [None, Some(Noise { seed: 3, probability: 0.3, slowdown: 5.0 })] {
            let mut before = 0.0;
            for gigabytes in [1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3] {
                let lane = Lane { bandwidth: Some(gigabytes * GIGA), latency_s: 1e-5, noise };
                let costs = unequal(&[200.0, 50.0, 120.0, 180.0][..n], &shape, lane);
                let ttft = even(mode, &costs, 4096).ttft_s;
                assert!(ttft >= before, "{mode} at {gigabytes} GB/s: {ttft} after {before}");
                before = ttft;
            }
        }
    }
}

#[test]
fn no_barrier_means_that_early_adapters_run_ahead() {
    let costs = adapters(2, &llama(), Some(300.0 * GIGA));
    let ahead = |mode: Mode, lengths: &[usize]| {
        let run = simulate(&mode.schedule(0, lengths, 32), &costs).unwrap();
        let (first, last) = (&run.adapters[0].layers, &run.adapters[1].layers);
        let layer_of = |time: f64| first.iter().filter(|l| l.end_s <= time).count();
        last.iter().enumerate().map(|(i, l)| layer_of(l.start_s).saturating_sub(i)).max()
    };
    assert!(ahead(Mode::Runahead, &[1024, 3072]) > Some(8));
    assert!(ahead(Mode::TspCausal, &[1024, 3072]) <= Some(1));
}

#[test]
fn the_relay_is_never_sooner_than_the_direct_hand_off() {
    for gigabytes in [300.0, 10.0, 1.0] {
        for p in [2, 4, 8] {
            let costs = adapters(p, &llama(), Some(gigabytes * GIGA));
            let (direct, relay) = (even(Mode::Runahead, &costs, 8192), even(Mode::Relay, &costs, 8192));
            assert!(relay.ttft_s >= direct.ttft_s * (1.0 - 1e-9), "{gigabytes} GB/s, {p} adapters");
        }
    }
}

#[test]
fn a_search_is_sound_and_never_worse_than_even() {
    let shape = llama();
    for (past, len) in [(0, 20), (0, 100), (7, 333), (300, 1000), (0, 4096)] {
        for speeds in [vec![200.0; 3], vec![20.0, 200.0], vec![200.0, 3.0, 90.0, 150.0, 10.0]] {
            let lane = Lane { bandwidth: Some(10.0 * GIGA), latency_s: 1e-5, noise: None };
            let costs = unequal(&speeds, &shape, lane);
            for mode in [Mode::Runahead, Mode::Relay] {
                let found = search_simulated(mode, &costs, past, len, 32).unwrap();
                super::partition::assert_sound(past, len, &found.lengths);
                assert!(found.finished && found.seconds <= found.even_seconds, "{found:?}");
            }
        }
    }
    // An objective with a known best cut, which is found to the granule.
    let best = [64, 256, 192];
    let mut distance =
        |l: &[usize]| -> Result<f64> { Ok(l.iter().zip(best).map(|(&a, b)| a.abs_diff(b) as f64).sum()) };
    let problem = Problem::exact(0, 512, 3, Vec::new());
    assert_eq!(search(&problem, &Cancel::new(), &mut distance, &mut |_| {}).unwrap().lengths, best);
    // With measurements steps are coarse, begin at the guess, and end after so many.
    let measured = Problem::measured(0, 512, 3, vec![80, 240, 192], &adapters(3, &llama(), None));
    assert_eq!(search(&measured, &Cancel::new(), &mut distance, &mut |_| {}).unwrap().lengths, best);
    let few = search(&Problem { most: 4, ..measured }, &Cancel::new(), &mut |_| Ok(1.0), &mut |_| {}).unwrap();
    assert!(few.finished && few.n_tried == 4, "{few:?}");
}

#[test]
fn a_tile_that_is_not_full_takes_as_long_as_a_full_one() {
    let mut costs = adapters(2, &llama(), None);
    costs.adapters.iter_mut().for_each(|adapter| adapter.tile_rows = 128);
    let seconds = |first: usize| {
        let schedule = Mode::Runahead.schedule(0, &[first, 4096 - first], 32);
        simulate(&schedule, &costs).unwrap().adapters[0].busy_s
    };
    // 17 tiles on the first adapter from 2,064 tokens on; its scores alone tell them apart.
    assert!(seconds(2064) > 1.02 * seconds(2048) && seconds(2176) < 1.02 * seconds(2064));
    let found = search_simulated(Mode::Runahead, &costs, 0, 4096, 32).unwrap();
    assert!(found.lengths.iter().all(|n| n.is_multiple_of(128)), "{found:?}");
}

#[test]
fn a_search_on_measurements_takes_the_middle_of_what_is_equally_fast() {
    // All cuts whose first piece is within 128 tokens of `best` take the same time but for noise of half a percent; others take longer.
    let measure = |best: usize, noise: usize| {
        move |l: &[usize]| -> Result<f64> {
            let off = l[0].abs_diff(best).saturating_sub(128) as f64 / 2048.0;
            let luck = (l[0] / 16 * 7919 + noise * 104_729) % 11;
            Ok(1.0 + off + 0.005 * luck as f64 / 11.0)
        }
    };
    let guess = vec![1504, 544];
    for best in [960, 1184, 1408] {
        for noise in 0..8 {
            let mut objective = measure(best, noise);
            let problem = Problem::measured(0, 2048, 2, guess.clone(), &adapters(2, &llama(), None));
            let found = search(&problem, &Cancel::new(), &mut objective, &mut |_| {}).unwrap();
            super::partition::assert_sound(0, 2048, &found.lengths);
            assert!(found.lengths[0].abs_diff(best) <= 96, "{best}: {found:?}");
            assert_eq!(found.seconds, objective(&found.lengths).unwrap());
            assert!(found.finished && found.seconds <= found.even_seconds, "{found:?}");
        }
    }
}

#[test]
fn a_search_on_measurements_tries_cuts_between_whole_tiles_alone() {
    let tiles = |n: usize| n.div_ceil(128) as f64;
    let cuts = [vec![4720, 3472], vec![3216, 2784], vec![1600, 1296, 1200], vec![2600, 2112, 1904, 1576]];
    for guess in cuts {
        let len = guess.iter().sum::<usize>();
        let mut tried = Vec::new();
        // A piece takes as long as its tiles, later ones longer for each.
        let mut objective = |l: &[usize]| -> Result<f64> {
            tried.push(l.to_vec());
            Ok(l.iter().enumerate().map(|(i, &n)| tiles(n) * (1.0 + 0.25 * i as f64)).fold(0.0, f64::max))
        };
        let even = Split::Even.lengths(0, len, guess.len()).unwrap();
        let mut costs = adapters(guess.len(), &llama(), None);
        costs.adapters.iter_mut().for_each(|adapter| adapter.tile_rows = 128);
        let problem = Problem::measured(0, len, guess.len(), guess.clone(), &costs);
        let found = search(&problem, &Cancel::new(), &mut objective, &mut |_| {}).unwrap();
        super::partition::assert_sound(0, len, &found.lengths);
        let whole = |l: &[usize]| l[..l.len() - 1].iter().all(|n| n.is_multiple_of(128));
        assert!(whole(&found.lengths), "{found:?}");
        // More than three pieces, by costs that fit: no coarse steps before the fine ones.
        let mut estimated = costs.clone();
        estimated.adapters[0].fit_error = 0.25;
        let levels = |costs| Problem::measured(0, len, guess.len(), guess.clone(), costs).coarsest;
        assert_eq!(levels(&costs) == problem.finest, guess.len() > 3);
        assert_eq!(levels(&estimated) == 4 * problem.finest, guess.len() > 3);
        // Beside the even cut, from which neighbours are whole tiles away.
        let apart = |l: &[usize]| l[..l.len() - 1].iter().zip(&even).all(|(a, b)| a.abs_diff(*b).is_multiple_of(128));
        assert!(tried.iter().all(|l| whole(l) || apart(l)), "{tried:?}");
    }
}

#[test]
fn a_cancelled_search_keeps_the_best_so_far_and_a_failed_one_fails() {
    let problem = Problem::exact(0, 1024, 2, Vec::new());
    let cancel = Cancel::new();
    let mut tries = 0;
    let mut objective = |lengths: &[usize]| {
        tries += 1;
        if tries == 5 {
            cancel.cancel();
        }
        Ok(lengths[1] as f64)
    };
    let found = search(&problem, &cancel, &mut objective, &mut |_| {}).unwrap();
    assert!(!found.finished && found.n_tried == 5 && found.seconds < found.even_seconds, "{found:?}");
    assert!(matches!(search(&problem, &cancel, &mut |_| Ok(0.0), &mut |_| {}), Err(Error::Cancelled)));
    let mut failing = |_: &[usize]| Err(Error::EmptyPrompt);
    assert!(matches!(search(&problem, &Cancel::new(), &mut failing, &mut |_| {}), Err(Error::EmptyPrompt)));
}

#[test]
fn unequal_adapters_get_unequal_pieces() {
    let costs = unequal(&[100.0, 200.0], &llama(), Lane { bandwidth: Some(100.0 * GIGA), ..Lane::default() });
    let found = search_simulated(Mode::Runahead, &costs, 0, 4096, 32).unwrap();
    let ratio = found.lengths[1] as f64 / found.lengths[0] as f64;
    assert!((1.6..2.1).contains(&ratio), "{found:?}");
    assert!(found.lengths.iter().all(|n| n % GRANULE == 0));
}

#[test]
fn a_turn_behind_a_long_past_pays_for_reading_it() {
    let costs = adapters(2, &llama(), Some(10.0 * GIGA));
    let at = |past| simulate(&Schedule::runahead(past, &[512, 512], 32), &costs).unwrap();
    let (new, later) = (at(0), at(8192));
    assert!(later.ttft_s > new.ttft_s);
    assert_eq!(later.adapters[0].fetched_bytes, 31.0 * 8192.0 * 16_384.0);
    assert_eq!(new.adapters[0].fetched_bytes, 0.0);
}

#[test]
fn costs_that_are_no_numbers_are_refused() {
    let good = adapters(2, &llama(), Some(GIGA));
    let schedule = Schedule::runahead(0, &[512, 512], 4);
    simulate(&schedule, &good).unwrap();
    let change = |f: &dyn Fn(&mut CostModel)| {
        let mut costs = good.clone();
        f(&mut costs);
        simulate(&schedule, &costs)
    };
    assert!(
        matches!(change(&|c| c.adapters[1].up.bandwidth = Some(0.0)), Err(Error::Config(e)) if e.contains("bandwidth of 0"))
    );
    assert!(change(&|c| c.adapters[0].down.latency_s = f64::NAN).is_err());
    assert!(change(&|c| c.adapters[0].score_s = -1.0).is_err());
    assert!(change(&|c| c.hub = Some(f64::INFINITY)).is_err());
    assert!(change(&|c| c.kv_bytes = f64::NAN).is_err());
    assert!(matches!(change(&|c| c.adapters.truncate(1)), Err(Error::Partition(_))));
}
