//! The sampler: distributions, cuts, penalties, log-probabilities, stop strings, and whole answers by seed.

use std::collections::HashMap;

use runahead::engine::{DeviceId, Engine, Options};
use runahead::error::Error;
use runahead::sampler::{Sampler, Sampling, StopFilter};
use runahead::tokenizer::StreamDecoder;

use super::chain::reference;

fn warm(temperature: f32) -> Sampling {
    Sampling { temperature, ..Sampling::default() }
}

/// How often each id comes in `n` draws.
fn frequencies(sampling: &Sampling, logits: &[f32], n: usize) -> Vec<f64> {
    let mut sampler = Sampler::new(sampling).unwrap();
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..n {
        counts[sampler.choose(logits, &[]).unwrap().id as usize] += 1.0 / n as f64;
    }
    counts
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

#[test]
fn draws_follow_the_softmax_at_every_temperature() {
    let logits = [1.0, -0.5, 2.0, 0.0, f32::NEG_INFINITY, f32::NAN, 1.5];
    let clean: Vec<f32> = logits.iter().map(|l| if l.is_finite() { *l } else { f32::NEG_INFINITY }).collect();
    for temperature in [0.5, 1.0, 3.0] {
        let got = frequencies(&Sampling { seed: 7, ..warm(temperature) }, &logits, 40_000);
        for (id, (got, want)) in got.iter().zip(softmax(&clean, f64::from(temperature))).enumerate() {
            // Four standard deviations of a binomial share.
            assert!(
                (got - want).abs() <= 4.0 * (want * (1.0 - want) / 40_000.0).sqrt(),
                "{temperature} {id}: {got} {want}"
            );
        }
    }
    let cold = frequencies(&warm(1e-3), &logits, 100);
    assert!(cold[2] > 0.999, "{cold:?}");
}

#[test]
fn a_seed_is_a_sequence() {
    let logits: Vec<f32> = (0..300).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    let draw = |seed| {
        let mut sampler = Sampler::new(&Sampling { seed, top_k: 100, top_p: 0.95, ..warm(1.0) }).unwrap();
        (0..50).map(|_| sampler.choose(&logits, &[]).unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

#[test]
fn cuts_leave_what_they_say() {
    // Probabilities 1/2, 1/4, 1/8, 1/16, 1/16, in an order that is not theirs.
    let logits: Vec<f32> = [1.0 / 16.0, 0.25, 0.5, 1.0 / 16.0, 0.125f32].iter().map(|p| p.ln()).collect();
    let left = |sampling: Sampling| {
        let got = frequencies(&sampling, &logits, 4000);
        (0..5).filter(|&id| got[id] > 0.0).collect::<Vec<_>>()
    };
    assert_eq!(left(warm(1.0)), [0, 1, 2, 3, 4]);
    assert_eq!(left(Sampling { top_k: 1, ..warm(1.0) }), [2]);
    assert_eq!(left(Sampling { top_k: 3, ..warm(1.0) }), [1, 2, 4]);
    assert_eq!(left(Sampling { top_k: 99, ..warm(1.0) }), [0, 1, 2, 3, 4]);
    assert_eq!(left(Sampling { top_p: 1e-6, ..warm(1.0) }), [2]);
    assert_eq!(left(Sampling { top_p: 0.7, ..warm(1.0) }), [1, 2]);
    assert_eq!(left(Sampling { top_p: 0.8, ..warm(1.0) }), [1, 2, 4]);
    assert_eq!(left(Sampling { min_p: 0.2, ..warm(1.0) }), [1, 2, 4]);
    assert_eq!(left(Sampling { min_p: 1.0, ..warm(1.0) }), [2]);
    // A high temperature evens out what is left, and brings nothing back.
    let hot = frequencies(&Sampling { top_k: 2, ..warm(1e6) }, &logits, 4000);
    assert!((hot[1] - 0.5).abs() < 0.05 && (hot[2] - 0.5).abs() < 0.05, "{hot:?}");
}

#[test]
fn a_nucleus_wider_than_the_sorted_front_is_whole() {
    // 20,000 equal tokens: half the probability is half of them, the lower ids.
    let logits = vec![0.5; 20_000];
    let mut sampler = Sampler::new(&Sampling { top_p: 0.5, ..warm(1.0) }).unwrap();
    let ids: Vec<u32> = (0..200).map(|_| sampler.choose(&logits, &[]).unwrap().id).collect();
    assert!(ids.iter().all(|&id| id < 10_001), "{:?}", ids.iter().max());
    assert!(ids.iter().any(|&id| id > 9_000), "{:?}", ids.iter().max());
}

#[test]
fn penalties_move_what_was_seen() {
    let greedy = |sampling: Sampling, logits: &[f32], before: &[u32]| {
        Sampler::new(&sampling).unwrap().choose(logits, before).unwrap().id
    };
    let base = Sampling::default();
    let logits = [2.0, 1.5, -1.0, -1.1];
    assert_eq!(greedy(base.clone(), &logits, &[0, 0, 0]), 0);
    let repeat = Sampling { repeat_penalty: 1.5, ..base.clone() };
    assert_eq!(greedy(repeat.clone(), &logits, &[0]), 1);
    assert_eq!(greedy(repeat.clone(), &[-9.0, -9.0, -1.0, -1.1], &[2]), 3, "negative logits grow more negative");
    let frequency = Sampling { frequency_penalty: 0.2, ..base.clone() };
    assert_eq!(greedy(frequency.clone(), &logits, &[0, 0]), 0);
    assert_eq!(greedy(frequency, &logits, &[0, 0, 0]), 1);
    let presence = Sampling { presence_penalty: 0.6, ..base.clone() };
    assert_eq!(greedy(presence.clone(), &logits, &[0]), 1);
    assert_eq!(greedy(presence, &logits, &[0, 1]), 0);
    // Beyond the window nothing is seen.
    let short = Sampling { penalty_window: 2, ..repeat };
    assert_eq!(greedy(short, &logits, &[0, 3, 3]), 0);
    // A negative penalty asks for repetition.
    assert_eq!(greedy(Sampling { presence_penalty: -0.6, ..base }, &logits, &[1]), 1);
}

#[test]
fn logprobs_are_the_models_own() {
    let logits = [0.0, 2.0, 1.0, -1.0];
    let want = softmax(&logits, 1.0);
    let sampling = Sampling { logprobs: 3, repeat_penalty: 5.0, top_k: 1, ..warm(0.7) };
    let choice = Sampler::new(&sampling).unwrap().choose(&logits, &[1]).unwrap();
    let logprobs = choice.logprobs.unwrap();
    assert_eq!(choice.id, 2, "the penalty took the likeliest down");
    assert!((f64::from(logprobs.chosen) - want[2].ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0]);
    assert!(logprobs.top.iter().all(|&(id, l)| (f64::from(l) - want[id as usize].ln()).abs() < 1e-6), "{logprobs:?}");
    let all = Sampling { logprobs: 99, ..Sampling::default() };
    assert_eq!(Sampler::new(&all).unwrap().choose(&logits, &[]).unwrap().logprobs.unwrap().top.len(), 4);
}

#[test]
fn values_without_a_meaning_are_refused() {
    let base = Sampling::default;
    let bad = [
        Sampling { temperature: -0.1, ..base() },
        Sampling { temperature: f32::NAN, ..base() },
        Sampling { temperature: f32::INFINITY, ..base() },
        Sampling { top_p: 0.0, ..base() },
        Sampling { top_p: 1.01, ..base() },
        Sampling { top_p: f32::NAN, ..base() },
        Sampling { min_p: -0.1, ..base() },
        Sampling { min_p: 1.1, ..base() },
        Sampling { repeat_penalty: 0.0, ..base() },
        Sampling { repeat_penalty: f32::NAN, ..base() },
        Sampling { frequency_penalty: f32::INFINITY, ..base() },
        Sampling { presence_penalty: f32::NAN, ..base() },
    ];
    for sampling in bad {
        assert!(matches!(Sampler::new(&sampling), Err(Error::Sampling(_))), "{sampling:?}");
    }
    let mut sampler = Sampler::new(&warm(1.0)).unwrap();
    for logits in [&[][..], &[f32::NAN, f32::NEG_INFINITY]] {
        assert!(matches!(sampler.choose(logits, &[]), Err(Error::Sampling(_))), "{logits:?}");
    }
}

/// Feeds `parts`; gives what came out in all, and whether the filter stopped.
fn filtered(stops: &[&str], parts: &[&str]) -> (String, bool) {
    let mut filter = StopFilter::new(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
    let mut out = parts.iter().map(|part| filter.push(part)).collect::<String>();
    out += &filter.finish();
    (out, filter.is_hit())
}

#[test]
fn stop_strings_are_found_however_the_text_is_cut() {
    let cases: [(&[&str], &str, &str, bool); 9] = [
        (&[], "any text", "any text", false),
        (&["STOP"], "go on. STOP here", "go on. ", true),
        (&["STOP"], "STO", "STO", false),
        (&["STOP"], "SSTOSTOP", "SSTO", true),
        (&["aab"], "aaab", "a", true),
        (&["later", "ate"], "too later", "too l", true),
        (&["ß, "], "Straße, groß, klein", "Straße, gro", true),
        (&["\u{1F600}"], "a \u{1F601} b \u{1F600} c", "a \u{1F601} b ", true),
        (&["", "x"], "ab", "ab", false),
    ];
    for (stops, text, want, hit) in cases {
        let chars: Vec<String> = text.chars().map(String::from).collect();
        for size in 1..=chars.len() {
            let parts: Vec<String> = chars.chunks(size).map(|c| c.concat()).collect();
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            assert_eq!(filtered(stops, &parts), (want.to_owned(), hit), "{stops:?} {parts:?}");
        }
    }
}

#[test]
fn a_stop_string_is_found_whose_characters_are_cut_by_tokens() {
    let engine = Engine::builder(super::weights::smollm2()).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let ids = tokenizer.encode("sea 🦑🐙 and land", false).unwrap();
    let whole = |id: u32| std::str::from_utf8(&tokenizer.token_bytes(id).unwrap()).is_ok();
    assert!(ids.iter().filter(|&&id| !whole(id)).count() > 2, "tokens of this text end inside characters");
    // Its first character shares bytes with the one before.
    let (mut decoder, mut filter) = (StreamDecoder::new(), StopFilter::new(&["🐙 an".to_owned()]));
    let mut text = String::new();
    for id in ids {
        text += &filter.push(&decoder.push(tokenizer, id).unwrap());
        if filter.is_hit() {
            break;
        }
    }
    assert_eq!((filter.is_hit(), text + &filter.finish()), (true, "sea 🦑".to_owned()));
}

#[test]
fn text_that_cannot_become_a_stop_string_is_not_held_back() {
    let mut filter = StopFilter::new(&["\n\nUser:".to_owned()]);
    assert_eq!(filter.push("Hello\n"), "Hello");
    assert_eq!(filter.push("there"), "\nthere");
    assert_eq!(filter.push("!\n\nUs"), "!");
    assert_eq!(filter.push("ual"), "\n\nUsual");
}

#[test]
fn the_same_seed_gives_the_same_text_on_one_adapter_and_on_a_chain() {
    let answer = |devices: &[DeviceId], seed| {
        let engine = Engine::builder(super::weights::smollm2()).unwrap().devices(devices.to_vec()).context(128);
        let engine = engine.open().unwrap();
        let prompt =
            engine.prompt_tokens("Name four animals that live in the sea, and say a word about each.", false).unwrap();
        let sampling = Sampling { seed, top_k: 50, repeat_penalty: 1.1, ..warm(0.9) };
        let options = Options { max_tokens: 12, sampling, ..Options::default() };
        let mut session = engine.session().unwrap();
        session.generate(&prompt, &options).unwrap().map(|t| t.unwrap().text).collect::<String>()
    };
    let first = answer(&[DeviceId::Cpu], 5);
    assert_eq!(answer(&[DeviceId::Cpu], 5), first);
    assert_ne!(answer(&[DeviceId::Cpu], 6), first);
    assert_eq!(answer(&[DeviceId::Gpu(0)], 5), answer(&[DeviceId::Gpu(0); 2], 5));
}

#[test]
fn logits_of_the_sampling_path_choose_the_devices_tokens() {
    for devices in [&[DeviceId::Cpu][..], &[DeviceId::Gpu(0); 2]] {
        let engine =
            Engine::builder(reference("llama-mha")).unwrap().devices(devices.to_vec()).context(128).open().unwrap();
        let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 384).collect();
        let run = |sampling: Sampling| {
            let options = Options { max_tokens: 12, stop_at_end: false, sampling, ..Options::default() };
            let mut session = engine.session().unwrap();
            session.generate(&prompt, &options).unwrap().map(|t| t.unwrap()).collect::<Vec<_>>()
        };
        let plain = run(Sampling::default());
        let told = run(Sampling { logprobs: 2, ..Sampling::default() });
        assert_eq!(plain.iter().map(|t| t.id).collect::<Vec<_>>(), told.iter().map(|t| t.id).collect::<Vec<_>>());
        for token in &told {
            let logprobs = token.logprobs.as_ref().unwrap();
            assert_eq!((logprobs.top[0].0, logprobs.top[0].1), (token.id, logprobs.chosen));
            assert!(logprobs.chosen < 0.0 && logprobs.top[1].1 <= logprobs.chosen);
        }
        assert!(plain.iter().all(|t| t.logprobs.is_none()));
    }
}

#[test]
fn an_answer_ends_before_its_stop_string() {
    let engine =
        Engine::builder(super::weights::smollm2()).unwrap().devices([DeviceId::Cpu]).context(128).open().unwrap();
    let prompt = engine.prompt_tokens("The capital of France is", true).unwrap();
    let answer = |stop: &[&str]| {
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        let options = Options { max_tokens: 24, stop, ..Options::default() };
        let mut session = engine.session().unwrap();
        let mut generation = session.generate(&prompt, &options).unwrap();
        let mut ids = Vec::new();
        let mut text = String::new();
        for token in generation.by_ref() {
            let token = token.unwrap();
            ids.push(token.id);
            text += &token.text;
        }
        text += &generation.finish();
        (text, ids, session.n_tokens())
    };
    let (free, ids, _) = answer(&[]);
    // A string that begins in the middle of one token and ends in the middle of another.
    let middle = free.char_indices().map(|(i, _)| i).nth(free.chars().count() / 2).unwrap();
    let stop = &free[middle..(middle + 9).min(free.len())];
    let (text, short, n) = answer(&[stop]);
    assert_eq!(text, free[..free.find(stop).unwrap()]);
    assert!(short.len() < ids.len() && ids.starts_with(&short), "{short:?}");
    assert_eq!(n, prompt.len() + short.len(), "the tokens of the stop string stay in the conversation");
    assert_eq!(answer(&["never in this text"]).0, free);
}

#[test]
fn penalties_end_repetition_in_an_answer() {
    let engine =
        Engine::builder(super::weights::smollm2()).unwrap().devices([DeviceId::Cpu]).context(128).open().unwrap();
    let prompt = engine.prompt_tokens("la la la la la la la la", true).unwrap();
    let most = |sampling: Sampling| {
        let options = Options { max_tokens: 24, stop_at_end: false, sampling, ..Options::default() };
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for token in engine.session().unwrap().generate(&prompt, &options).unwrap() {
            *counts.entry(token.unwrap().id).or_default() += 1;
        }
        counts.into_values().max().unwrap()
    };
    let plain = most(Sampling::default());
    for sampling in [
        Sampling { frequency_penalty: 2.0, ..Sampling::default() },
        Sampling { repeat_penalty: 1.5, ..Sampling::default() },
        Sampling { presence_penalty: 4.0, ..Sampling::default() },
    ] {
        assert!(most(sampling.clone()) < plain, "{plain} {sampling:?}");
    }
}
