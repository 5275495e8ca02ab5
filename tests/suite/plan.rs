//! Tables of partitions, and the choice of adapters: pure but for the table's file.

use std::fs;
use std::path::Path;

use runahead::cancel::Cancel;
use runahead::engine::{CalibrateOptions, CalibrateStep, DeviceId, Engine, devices};
use runahead::error::{Error, Result};
use runahead::runahead::auto::{Choice, Task, choose};
use runahead::runahead::cost::{CostModel, Curve, Lane, Rates, Shape};
use runahead::runahead::schedule::Mode;
use runahead::runahead::search::search_simulated;
use runahead::runahead::table::{Fingerprint, Point, Table};

fn costs(tflops: &[f64], bandwidth: f64) -> CostModel {
    let shape = Shape::named("llama-7b").unwrap();
    let lane = Lane { bandwidth: Some(bandwidth), latency_s: 1e-5, noise: None };
    let cost = |(i, &speed): (usize, &f64)| {
        let rates = Rates {
            name: format!("adapter {i}"),
            product_flops: speed * 1e12,
            attention_flops: speed * 1e12,
            half_speed_tokens: 64.0,
            decode_s: Some(1.0 / speed),
            down: lane,
            up: lane,
        };
        rates.costs(&shape).unwrap()
    };
    CostModel {
        adapters: tflops.iter().enumerate().map(cost).collect(),
        kv_bytes: shape.kv_bytes(2),
        windows: Vec::new(),
        hub: None,
    }
}

fn fingerprint(n: usize) -> Fingerprint {
    Fingerprint {
        machine: "a machine".to_owned(),
        adapters: (0..n).map(|i| format!("adapter {i}")).collect(),
        drivers: vec!["driver 1".to_owned(); n],
        model: "a model".to_owned(),
        weights: "F16".to_owned(),
        kv: "F16".to_owned(),
        version: "0".to_owned(),
    }
}

fn searched(costs: &CostModel, contexts: &[usize]) -> Vec<Point> {
    let point = |&context: &usize| {
        let found = search_simulated(Mode::Runahead, costs, 0, context, 32).unwrap();
        let single = |i: usize| {
            let alone = costs.pick(&[i]);
            search_simulated(Mode::Runahead, &alone, 0, context, 32).unwrap().seconds * 1e3
        };
        Point {
            context,
            lengths: found.lengths,
            ttft_ms: found.seconds * 1e3,
            even_ms: found.even_seconds * 1e3,
            single_ms: (0..costs.adapters.len()).map(single).collect(),
        }
    };
    contexts.iter().map(point).collect()
}

fn table(costs: &CostModel, contexts: &[usize]) -> Table {
    Table::new(1_700_000_000, fingerprint(costs.adapters.len()), costs.clone(), searched(costs, contexts)).unwrap()
}

#[test]
fn a_prediction_at_a_point_of_the_table_is_that_point() {
    for speeds in [vec![200.0, 200.0], vec![200.0, 50.0, 120.0]] {
        let costs = costs(&speeds, 100e9);
        let table = table(&costs, &[500, 1024, 4096, 10_000]);
        for point in &table.points {
            assert_eq!(table.predict(0, point.context).as_ref(), Some(&point.lengths));
        }
    }
}

#[test]
fn predictions_between_points_are_near_what_a_search_finds() {
    let costs = costs(&[200.0, 200.0, 200.0, 200.0], 300e9);
    let table = table(&costs, &[1024, 4096, 16_384]);
    for len in [1500, 2048, 3000, 6000, 8192, 12_000] {
        let lengths = table.predict(0, len).unwrap();
        super::partition::assert_sound(0, len, &lengths);
        let searched = search_simulated(Mode::Runahead, &costs, 0, len, 32).unwrap();
        let schedule = Mode::Runahead.schedule(0, &lengths, 32);
        let predicted = runahead::runahead::simulate::simulate(&schedule, &costs).unwrap().ttft_s;
        assert!(predicted <= 1.03 * searched.seconds, "{len}: {predicted} against {searched:?}");
    }
    // Outside of the table the cut still holds.
    for len in [1, 17, 100, 100_000] {
        super::partition::assert_sound(0, len, &table.predict(0, len).unwrap());
    }
    assert!(table.measured_ms(100).is_none() && table.measured_ms(2000).is_some());
    assert_eq!(Table::new(0, fingerprint(4), costs, Vec::new()).unwrap().predict(0, 100), None);
}

#[test]
fn predicted_pieces_are_whole_tiles() {
    let mut costs = costs(&[200.0, 200.0, 150.0], 100e9);
    // An estimate: what is nearby is as good.
    costs.adapters.iter_mut().for_each(|adapter| (adapter.tile_rows, adapter.fit_error) = (128, 0.25));
    let points = [vec![848, 656, 544], vec![3648, 2544, 2000]];
    let partitions: Vec<&[usize]> = points.iter().map(Vec::as_slice).collect();
    let predict = |costs, past, len| runahead::runahead::table::predict(&partitions, costs, past, len).unwrap();
    let mut rough = costs.clone();
    rough.adapters.iter_mut().for_each(|adapter| adapter.tile_rows = 1);
    for (past, len) in [(0, 4096), (0, 5003), (0, 16_384), (37, 6000), (1000, 8000)] {
        let (lengths, other) = (predict(&costs, past, len), predict(&rough, past, len));
        super::partition::assert_sound(past, len, &lengths);
        // The first piece may begin within a granule.
        assert!((lengths[0] + past % 16).is_multiple_of(128) || past == 0, "{lengths:?}");
        assert!(lengths[1..lengths.len() - 1].iter().all(|n| n.is_multiple_of(128)), "{lengths:?}");
        let cuts = |lengths: &[usize]| (1..lengths.len()).map(|i| lengths[..i].iter().sum()).collect::<Vec<usize>>();
        let moved = cuts(&lengths).into_iter().zip(cuts(&other)).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(moved <= 64 + 16, "{past} {len}: {lengths:?} {other:?}");
    }
    // What was searched stays as it is, and so does what has few tiles.
    assert_eq!(predict(&costs, 0, 8192), points[1]);
    assert_eq!(predict(&costs, 0, 1000), predict(&rough, 0, 1000));
}

#[test]
fn measured_costs_move_predicted_cuts_to_where_a_round_of_workgroups_ends() {
    let mut costs = costs(&[200.0, 200.0, 150.0], 100e9);
    // A round is five tiles: one more costs as much as the five.
    let steps = |rows: f64| (rows / 640.0).ceil() * 640.0;
    for adapter in &mut costs.adapters {
        let tiles = || (1..=64).map(|tiles| f64::from(tiles) * 128.0);
        let [qkv, rest] =
            [&adapter.qkv, &adapter.rest].map(|smooth| Curve::new(tiles().map(|n| (n, smooth.at(steps(n))))).unwrap());
        (adapter.qkv, adapter.rest, adapter.tile_rows) = (qkv, rest, 128);
    }
    let mut rough = costs.clone();
    rough.adapters.iter_mut().for_each(|adapter| adapter.fit_error = 0.25);
    let points = [vec![848, 656, 544], vec![3648, 2544, 2000]];
    let partitions: Vec<&[usize]> = points.iter().map(Vec::as_slice).collect();
    let predict = |costs, len| runahead::runahead::table::predict(&partitions, costs, 0, len).unwrap();
    let seconds = |lengths: &[usize]| {
        let schedule = Mode::Runahead.schedule(0, lengths, 32);
        runahead::runahead::simulate::simulate(&schedule, &costs).unwrap().ttft_s
    };
    let mut gained = 0;
    for len in [1024, 3000, 4096, 5003, 6000, 10_000] {
        let (lengths, between) = (predict(&costs, len), predict(&rough, len));
        super::partition::assert_sound(0, len, &lengths);
        let cuts = |lengths: &[usize]| (1..lengths.len()).map(|i| lengths[..i].iter().sum()).collect::<Vec<usize>>();
        let moved = cuts(&lengths).into_iter().zip(cuts(&between)).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(moved <= 2 * 128 + 64 + 16, "{len}: {lengths:?} {between:?}");
        assert!(seconds(&lengths) <= seconds(&between), "{len}: {lengths:?} {between:?}");
        gained += usize::from(seconds(&lengths) < 0.98 * seconds(&between));
    }
    assert!(gained >= 2, "{gained}");
    // A length that was searched stays as it is.
    assert_eq!(predict(&costs, 8192), points[1]);
}

#[test]
fn predictions_beside_the_points_follow_the_balance_of_the_costs() {
    for (speeds, bandwidth) in [(vec![200.0; 2], 10e9), (vec![200.0; 4], 300e9), (vec![200.0, 100.0, 150.0], 50e9)] {
        let costs = costs(&speeds, bandwidth);
        let seconds = |lengths: &[usize]| {
            let schedule = Mode::Runahead.schedule(0, lengths, 32);
            runahead::runahead::simulate::simulate(&schedule, &costs).unwrap().ttft_s
        };
        let nearest = table(&costs, &[4096]);
        for len in [2048, 8192, 16_384, 32_768] {
            let searched = search_simulated(Mode::Runahead, &costs, 0, len, 32).unwrap();
            let predicted = seconds(&nearest.predict(0, len).unwrap());
            assert!(predicted <= 1.03 * searched.seconds, "{speeds:?} {len}: {predicted} against {searched:?}");
        }
        // As the nearest point is cut, the longest prompt would take much longer.
        let point: Vec<usize> = nearest.points[0].lengths.iter().map(|n| 8 * n).collect();
        assert!(seconds(&point) > 1.05 * seconds(&nearest.predict(0, 32_768).unwrap()), "{speeds:?}");
    }
}

#[test]
fn a_table_is_found_again_and_only_where_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = fingerprint(2);
    let table = table(&costs(&[200.0, 100.0], 10e9), &[512, 2048]);
    assert!(Table::find(folder.path(), &wanted).unwrap().is_none());
    let path = table.save(&folder.path().join("tables")).unwrap();
    let folder = folder.path().join("tables");
    assert_eq!(Table::find(&folder, &wanted).unwrap(), Some(table.clone()));
    assert_eq!(table.date, "2023-11-14");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");

    let refused = |wanted: &Fingerprint, word: &str| match Table::read(&path, wanted) {
        Err(Error::BadFile { reason, .. }) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{word}: {other:?}"),
    };
    // The same place with a newer driver finds the old table, and says why it is of no use.
    let newer = Fingerprint { drivers: vec!["driver 2".to_owned(); 2], ..wanted.clone() };
    assert!(matches!(Table::find(&folder, &newer), Err(Error::BadFile { .. })));
    refused(&newer, "driver 2");
    refused(&Fingerprint { machine: "another".to_owned(), ..wanted.clone() }, "machine");
    refused(&Fingerprint { version: "1".to_owned(), ..wanted.clone() }, "version");
    // Other models and adapters have files of their own.
    assert_ne!(Fingerprint { model: "b".to_owned(), ..wanted.clone() }.file(&folder), path);
    assert_ne!(fingerprint(3).file(&folder), path);
}

#[test]
fn damaged_tables_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = fingerprint(2);
    let path = table(&costs(&[200.0, 100.0], 10e9), &[512, 2048]).save(folder.path()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let refused = |text: &str, word: &str| {
        fs::write(&path, text).unwrap();
        match Table::find(folder.path(), &wanted) {
            Err(Error::BadFile { reason, .. }) => assert!(reason.contains(word), "{word}: {reason}"),
            other => panic!("{word}: {other:?}"),
        }
    };
    refused("", "no table");
    refused(&text[..text.len() / 2], "no table");
    refused("{}", "no table");
    refused(&text.replacen("\"format\": 1", "\"format\": 2", 1), "format 2");
    refused(&text.replacen("\"context\": 512", "\"context\": 528", 1), "damaged");
    refused(&text.replacen("\"bandwidth\": 10000000000.0", "\"bandwidth\": 0.0", 1), "bandwidth of 0");
    refused(&" ".repeat(5 << 20), "bytes are no table");
    for cut in (0..text.len()).step_by(97) {
        fs::write(&path, &text.as_bytes()[..cut]).unwrap();
        assert!(Table::find(folder.path(), &wanted).is_err(), "cut at {cut}");
    }
    fs::write(&path, &text).unwrap();
    assert!(Table::find(folder.path(), &wanted).unwrap().is_some());
    assert!(matches!(Table::read(Path::new("/nonexistent/table"), &wanted), Err(Error::Io { .. })));
}

fn choice(costs: &CostModel, table: Option<&Table>, len: usize) -> Result<Choice> {
    choose(&Task {
        costs,
        costs_of: &|order| Ok(costs.pick(order)),
        table,
        past: 0,
        len,
        n_layers: 32,
        refuses: &|_, _| None,
    })
}

#[test]
fn equal_adapters_on_a_fast_link_make_a_chain() {
    let choice = choice(&costs(&[200.0, 200.0], 100e9), None, 8192).unwrap();
    assert_eq!((choice.mode, &choice.order[..]), (Mode::Runahead, &[0, 1][..]));
    assert!(choice.left_out.is_empty() && choice.forecast.ttft_s < 0.6 * choice.single_s, "{choice:?}");
}

#[test]
fn an_adapter_that_does_not_help_is_left_out_with_a_reason() {
    // A slow third adapter on a slow link.
    let mut set = costs(&[200.0, 200.0, 0.05], 100e9);
    set.adapters[2].up.bandwidth = Some(1e8);
    let chosen = choice(&set, None, 8192).unwrap();
    assert_eq!(chosen.order.len(), 2);
    let [(2, reason)] = &chosen.left_out[..] else { panic!("{:?}", chosen.left_out) };
    assert!(reason.contains("without"), "{reason}");

    // The slower of two very unequal ones.
    let chosen = choice(&costs(&[0.05, 200.0], 1e9), None, 1024).unwrap();
    assert_eq!((chosen.mode, &chosen.order[..]), (Mode::Single, &[1][..]));
    assert!(chosen.left_out[0].1.contains("alone"), "{:?}", chosen.left_out);

    // Too short to cut.
    for len in [1, 16] {
        let chosen = choice(&costs(&[200.0, 200.0], 100e9), None, len).unwrap();
        assert_eq!(chosen.mode, Mode::Single);
        assert!(chosen.left_out[0].1.contains("granule"), "{:?}", chosen.left_out);
    }

    // Too little memory for the last place of a chain, or for any.
    let set = costs(&[200.0, 200.0], 100e9);
    let refuses = |i: usize, last: bool| (i == 1 && last).then(|| "too little memory".to_owned());
    let task = Task {
        costs: &set,
        costs_of: &|order| Ok(set.pick(order)),
        table: None,
        past: 0,
        len: 8192,
        n_layers: 32,
        refuses: &refuses,
    };
    assert_eq!(choose(&task).unwrap().order, [1, 0]);
    let refuses = |i: usize, _: bool| (i == 1).then(|| "too little memory".to_owned());
    let chosen = choose(&Task { refuses: &refuses, ..task }).unwrap();
    assert_eq!((&chosen.order[..], &chosen.left_out[0].1[..]), (&[0][..], "too little memory"));
    let none = |_: usize, _: bool| Some("no".to_owned());
    assert!(matches!(choose(&Task { refuses: &none, ..task }), Err(Error::Partition(_))));
}

#[test]
fn the_best_decoder_is_last_and_no_chain_is_slower_than_the_best_adapter_alone() {
    for speeds in [vec![200.0, 100.0], vec![100.0, 200.0, 150.0], vec![10.0, 200.0, 5.0, 90.0], vec![1.0; 7]] {
        for bandwidth in [1e8, 1e9, 1e10, 1e11] {
            for len in [64, 1024, 8192] {
                let set = costs(&speeds, bandwidth);
                let chosen = choice(&set, None, len).unwrap();
                assert!(chosen.forecast.ttft_s <= chosen.single_s, "{speeds:?} {bandwidth} {len}: {chosen:?}");
                assert_eq!(chosen.order.len() + chosen.left_out.len(), speeds.len());
                super::partition::assert_sound(0, len, &chosen.lengths);
                if chosen.mode == Mode::Runahead {
                    let best = speeds.iter().fold(0.0, |a, &b| f64::max(a, b));
                    assert_eq!(speeds[chosen.order[chosen.order.len() - 1]], best);
                }
            }
        }
    }
}

#[test]
fn what_was_measured_counts_more_than_what_the_costs_say() {
    let set = costs(&[200.0, 200.0], 100e9);
    let mut measured = table(&set, &[1024, 4096]);
    let chosen = choice(&set, Some(&measured), 4096).unwrap();
    assert_eq!(chosen.lengths, measured.points[1].lengths);
    // Chains were slow when they were measured: two logical adapters of one device.
    for point in &mut measured.points {
        point.ttft_ms = point.single_ms[0] * 1.2;
    }
    let chosen = choice(&set, Some(&measured), 2048).unwrap();
    assert_eq!(chosen.mode, Mode::Single);
    assert!(chosen.left_out[0].1.contains("chain"), "{:?}", chosen.left_out);
    // Also of another length, and in another order than the one that was measured.
    assert_eq!(choice(&set, Some(&measured), 512).unwrap().mode, Mode::Single);
    let mut swapped = set.clone();
    swapped.adapters[0].decode_s = Some(1e-6);
    measured.costs = swapped.clone();
    assert_eq!(choice(&swapped, Some(&measured), 2048).unwrap().mode, Mode::Single);
}

#[test]
fn a_shared_device_counts_once_where_chains_were_measured_too() {
    // Together each takes half as long again, in the costs of chains and in what was measured.
    let set = costs(&[200.0, 200.0], 100e9);
    let together = |order: &[usize]| {
        let mut costs = set.pick(order);
        if order.len() > 1 {
            for cost in &mut costs.adapters {
                *cost = cost.slower(1.5)?;
            }
        }
        Ok(costs)
    };
    let mut measured = table(&set, &[1024, 4096]);
    for point in &mut measured.points {
        let schedule = Mode::Runahead.schedule(0, &point.lengths, 32);
        let slower = together(&[0, 1]).unwrap();
        point.ttft_ms = 1e3 * runahead::runahead::simulate::simulate(&schedule, &slower).unwrap().ttft_s;
    }
    let task = Task {
        costs: &set,
        costs_of: &together,
        table: Some(&measured),
        past: 0,
        len: 4096,
        n_layers: 32,
        refuses: &|_, _| None,
    };
    let chosen = choose(&task).unwrap();
    assert_eq!(chosen.mode, Mode::Runahead, "{chosen:?}");
}

#[test]
fn costs_that_fit_badly_make_no_chain() {
    let mut set = costs(&[200.0, 200.0], 100e9);
    assert_eq!(choice(&set, None, 8192).unwrap().mode, Mode::Runahead);
    set.adapters[0].fit_error = 0.6;
    assert_eq!(choice(&set, None, 8192).unwrap().mode, Mode::Single);
}

#[test]
fn an_empty_prompt_is_refused() {
    assert!(matches!(choice(&costs(&[200.0], 1e9), None, 0), Err(Error::EmptyPrompt)));
}

#[test]
fn a_cancelled_calibration_keeps_what_it_found() {
    let cancel = Cancel::new();
    let engine = Engine::builder(super::chain::reference("llama-gqa-tied"))
        .unwrap()
        .devices([DeviceId::Cpu, DeviceId::Cpu])
        .context(256)
        .cancel(cancel.clone())
        .open()
        .unwrap();
    let options = CalibrateOptions { contexts: vec![256, 128], repetitions: 1 };
    let mut timed = 0;
    let calibration = engine.calibrate(&options, &mut |step| match step {
        CalibrateStep::Timed { .. } => timed += 1,
        CalibrateStep::Tried { context: 256, best } if best.n_tried >= 2 => cancel.cancel(),
        _ => {}
    });
    let calibration = calibration.unwrap();
    assert!(!calibration.finished && timed >= 8);
    let contexts: Vec<usize> = calibration.points.iter().map(|p| p.context).collect();
    assert_eq!(contexts, [128, 256]);
    calibration.costs.validate().unwrap();
    for point in &calibration.points {
        super::partition::assert_sound(0, point.context, &point.lengths);
        assert!(point.ttft_ms <= point.even_ms && point.single_ms.len() == 2);
    }
    // Before the costs are known there is nothing to keep.
    assert!(matches!(engine.calibrate(&options, &mut |_| {}), Err(Error::Cancelled)));
}

#[test]
fn a_calibration_times_every_number_of_whole_tiles() {
    let gpu = DeviceId::Gpu(0);
    let tile = devices().into_iter().find(|d| d.id == gpu).expect("a GPU, if only a software one").tile_rows;
    assert!(tile > 1);
    let context = 3 * tile + 8;
    // Chunks of one pass alone are timed.
    for (most, longest) in [(usize::MAX, context), (2 * tile, 2 * tile)] {
        let builder = Engine::builder(super::chain::reference("llama-gqa-tied")).unwrap().devices([gpu]);
        let engine = builder.context(context).max_share(most).open().unwrap();
        let mut timed = Vec::new();
        let options = CalibrateOptions { contexts: vec![context], repetitions: 1 };
        let calibration = engine.calibrate(&options, &mut |step| {
            if let CalibrateStep::Timed { prefix: 0, tokens, .. } = step {
                timed.push(tokens);
            }
        });
        let costs = calibration.unwrap().costs.adapters.remove(0);
        assert!((1..=3).map(|n| n * tile).all(|n| timed.contains(&n) == (n <= longest)), "{tile}: {timed:?}");
        assert!(timed.iter().all(|&n| n <= longest), "{timed:?}");
        assert_eq!(costs.tile_rows, tile);
        let points: Vec<(f64, f64)> = costs.rest.into();
        assert!((1..=longest / tile).all(|n| points.iter().any(|p| p.0 == (n * tile) as f64)), "{points:?}");
    }
}
