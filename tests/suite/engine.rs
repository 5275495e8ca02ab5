//! The engine as an application uses it: sessions, streams, cancels, errors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runahead::cancel::Cancel;
use runahead::config::shapes;
use runahead::dtype::Dtype;
use runahead::engine::{DeviceId, Engine, Event, Mode, Options, Progress, Session};
use runahead::error::Error;
use runahead::runahead::partition::Split;

use super::chain::reference;

fn tiny(devices: &[DeviceId]) -> Engine {
    Engine::builder(reference("llama-mha")).unwrap().devices(devices.to_vec()).context(256).open().unwrap()
}

fn ids(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    let options = Options { max_tokens: n, stop_at_end: false, ..Options::default() };
    session.generate(prompt, &options).unwrap().map(|t| t.unwrap().id).collect()
}

#[test]
fn a_conversation_in_turns_equals_one_long_prompt() {
    for devices in [&[DeviceId::Cpu][..], &[DeviceId::Gpu(0); 3]] {
        let engine = tiny(devices);
        let first: Vec<u32> = (0..70).map(|i| i * 5 % 384).collect();
        let second: Vec<u32> = (0..40).map(|i| i * 11 % 384).collect();
        let mut turns = engine.session().unwrap();
        let answer = ids(&mut turns, &first, 5);
        assert_eq!(turns.n_tokens(), 75);
        let continued = ids(&mut turns, &second, 5);
        assert_eq!(turns.n_tokens(), 120);

        let whole: Vec<u32> = first.iter().chain(&answer).chain(&second).copied().collect();
        assert_eq!(ids(&mut engine.session().unwrap(), &whole, 5), continued, "{devices:?}");
    }
}

#[test]
fn an_answer_may_be_dropped_and_the_conversation_goes_on() {
    let engine = tiny(&[DeviceId::Cpu]);
    let mut session = engine.session().unwrap();
    let prompt: Vec<u32> = (0..20).collect();
    let options = Options { max_tokens: 50, stop_at_end: false, ..Options::default() };
    let pulled: Vec<u32> = session.generate(&prompt, &options).unwrap().take(3).map(|t| t.unwrap().id).collect();
    assert_eq!(session.n_tokens(), 23);
    let next = ids(&mut session, &[7, 8, 9], 4);
    let whole: Vec<u32> = prompt.into_iter().chain(pulled).chain([7, 8, 9]).collect();
    assert_eq!(ids(&mut engine.session().unwrap(), &whole, 4), next);
}

#[test]
fn bad_requests_are_told_and_leave_the_session_as_it_was() {
    let engine = tiny(&[DeviceId::Cpu, DeviceId::Cpu]);
    let mut session = engine.session().unwrap();
    ids(&mut session, &[1, 2, 3], 2);
    let before = session.n_tokens();
    let given = |lengths: &[usize]| Options { split: Split::Given(lengths.to_vec()), ..Options::default() };
    let long = vec![1; 300];
    type Check = fn(&Error) -> bool;
    let cases: [(&[u32], Options, Check); 6] = [
        (&[], Options::default(), |e| matches!(e, Error::EmptyPrompt)),
        (&long, Options::default(), |e| matches!(e, Error::ContextFull { context: 256, .. })),
        (&[1, 384], Options::default(), |e| matches!(e, Error::BadToken { id: 384, vocab: 384 })),
        (&long[..64], given(&[32, 32]), |e| matches!(e, Error::Partition(_))), // cuts count from position 0
        (&long[..64], given(&[64]), |e| matches!(e, Error::Partition(_))),
        (&long[..64], given(&[0, 65]), |e| matches!(e, Error::Partition(_))),
    ];
    for (tokens, options, expected) in cases {
        let error = session.generate(tokens, &options).map(|_| ()).unwrap_err();
        assert!(expected(&error), "{error}");
        assert_eq!(session.n_tokens(), before);
    }
    ids(&mut session, &[4, 5], 2);
}

#[test]
fn a_full_context_ends_the_answer() {
    let engine = tiny(&[DeviceId::Cpu]);
    let mut session = engine.session().unwrap();
    let answer = ids(&mut session, &vec![3; 250], 100);
    // The token after the last row that fits is still given.
    assert_eq!(answer.len(), 256 - 250 + 1);
}

#[test]
fn few_tokens_use_fewer_adapters_and_say_so() {
    let engine = tiny(&[DeviceId::Cpu; 4]);
    let mut session = engine.session().unwrap();
    let options = Options { max_tokens: 1, ..Options::default() };
    let answer = session.generate(&[1; 33], &options).unwrap();
    let report = answer.report();
    assert_eq!(report.adapters.len(), 3);
    assert!(report.note.as_ref().is_some_and(|n| n.contains("3 of 4")), "{:?}", report.note);
    let mut session = engine.session().unwrap();
    let answer = session.generate(&[1; 33], &Options { mode: Mode::Single, ..options }).unwrap();
    assert_eq!((answer.report().mode, answer.report().adapters.len()), ("single", 1));
}

#[test]
fn streams_carry_progress_tokens_and_the_end() {
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    let builder = Engine::builder(reference("llama-gqa-tied")).unwrap().devices([DeviceId::Cpu]).context(256);
    let count = move |progress| {
        counted.fetch_add(usize::from(matches!(progress, Progress::Prefill { .. })), Ordering::Relaxed);
    };
    let engine = builder.on_progress(count).open().unwrap();
    let prompt: Vec<u32> = (0..40).collect();
    let options = Options { max_tokens: 6, stop_at_end: false, ..Options::default() };
    let want = ids(&mut engine.session().unwrap(), &prompt, 6);
    let told_before = told.load(Ordering::Relaxed);
    assert!(told_before > 0);
    let stream = engine.session().unwrap().stream(prompt.clone(), options.clone()).unwrap();
    let events: Vec<Event> = stream.events().iter().collect();
    let n_progress = events.iter().take_while(|e| matches!(e, Event::Progress(Progress::Prefill { .. }))).count();
    assert!(n_progress > 0 && matches!(events[n_progress], Event::Prefilled(_)), "{events:?}");
    assert!(matches!(events.last(), Some(Event::Done(_))), "{events:?}");
    assert_eq!(told.load(Ordering::Relaxed), told_before, "progress comes as events, not to the engine's callback");
    let got: Vec<u32> = events.iter().filter_map(|e| if let Event::Token(t) = e { Some(t.id) } else { None }).collect();
    assert_eq!(got, want);
    let mut session = stream.join().unwrap();
    assert_eq!(session.n_tokens(), 46);

    // Stopped early, the session goes on from what was generated.
    session = {
        let stream = session.stream(vec![5; 10], Options { max_tokens: 200, ..options }).unwrap();
        while !matches!(stream.events().recv().unwrap(), Event::Token(_)) {}
        stream.stop().unwrap()
    };
    assert!(session.n_tokens() > 56);
    assert_eq!(ids(&mut session, &[1, 2], 2).len(), 2);
    assert!(told.load(Ordering::Relaxed) > told_before, "behind the stream the callback is told again");
}

#[test]
fn a_builder_streams_load_progress_and_failures() {
    let builder = Engine::builder(super::weights::smollm2()).unwrap().devices([DeviceId::Cpu]).context(64);
    let stream = builder.stream("Hello".to_owned(), Options { max_tokens: 3, ..Options::default() }).unwrap();
    let events: Vec<Event> = stream.events().iter().collect();
    assert!(events.iter().any(|e| matches!(e, Event::Progress(Progress::Load { .. }))), "{events:?}");
    assert!(events.iter().any(|e| matches!(e, Event::Progress(Progress::Prefill { .. }))), "{events:?}");
    assert!(matches!(events.last(), Some(Event::Done(_))), "{events:?}");

    // The engine stays for the next prompt, which loads nothing.
    let engine =
        events.into_iter().find_map(|e| if let Event::Loaded(engine) = e { Some(engine) } else { None }).unwrap();
    let stream = engine.stream("Hello".to_owned(), Options { max_tokens: 3, ..Options::default() }).unwrap();
    let again: Vec<Event> = stream.events().iter().collect();
    let prefills = |e: &&Event| matches!(e, Event::Progress(Progress::Prefill { .. }));
    let others = |e: &&Event| matches!(e, Event::Prefilled(_) | Event::Token(_) | Event::Done(_));
    assert!(again.iter().any(|e| prefills(&e)) && again.iter().all(|e| prefills(&e) || others(&e)), "{again:?}");

    // A folder with weights alone cannot turn text into tokens.
    let stream = Engine::builder(reference("llama-mha")).unwrap().devices([DeviceId::Cpu]);
    let stream = stream.stream("Hello".to_owned(), Options::default()).unwrap();
    let last = stream.events().iter().last();
    assert!(matches!(last, Some(Event::Failed(Error::Tokenizer(_)))), "{last:?}");

    // The end is told however full of progress the channel is.
    let stream = Engine::builder(super::weights::smollm2()).unwrap().devices([DeviceId::Cpu]).context(64);
    let stream = stream.stream(String::new(), Options::default()).unwrap();
    while stream.events().len() < 64 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let last = stream.events().iter().last();
    assert!(matches!(last, Some(Event::Failed(Error::EmptyPrompt))), "{last:?}");
}

#[test]
fn cancels_end_load_prefill_and_decode_in_time() {
    let model = super::weights::smollm2();
    let cancelled = Cancel::new();
    cancelled.cancel();
    let load = Engine::builder(&model).unwrap().devices([DeviceId::Cpu]).cancel(cancelled).open();
    assert!(matches!(load.err(), Some(Error::Cancelled)));

    let cancel = Cancel::new();
    let engine = Engine::builder(&model).unwrap().devices([DeviceId::Cpu, DeviceId::Cpu]).context(1024);
    let engine = engine.cancel(cancel.clone()).open().unwrap();
    let mut session = engine.session().unwrap();
    let remote = cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        remote.cancel();
        Instant::now()
    });
    let result = session.generate(&[9; 1000], &Options::default()).map(|_| ());
    let late = Instant::now().duration_since(canceller.join().unwrap());
    assert!(matches!(result, Err(Error::Cancelled)));
    // 100 ms are promised; a loaded machine that runs the tests gets more.
    assert!(late < Duration::from_secs(2), "{late:?}");
}

#[test]
fn a_session_comes_back_from_a_stream_as_it_was_given() {
    let options = || Options { max_tokens: 3, stop_at_end: false, ..Options::default() };
    let engine = tiny(&[DeviceId::Cpu]);
    let mut session = engine.session().unwrap().stream(vec![1, 2, 3], options()).unwrap().join().unwrap();
    assert_eq!(session.kv(0).unwrap().0.len(), session.n_cached() * engine.config().kv_width());
    // A cancel that was put in holds in the stream and behind it.
    let cancel = Cancel::new();
    session.end_with(Some(&cancel));
    let mut session = session.stream(vec![4], options()).unwrap().join().unwrap();
    assert_eq!(session.n_tokens(), 10);
    cancel.cancel();
    assert!(matches!(session.generate(&[5], &options()).err(), Some(Error::Cancelled)));
    let stream = session.stream(vec![5], options()).unwrap();
    let last = stream.events().iter().last();
    assert!(matches!(last, Some(Event::Failed(Error::Cancelled))), "{last:?}");
}

#[test]
fn an_adapter_that_is_not_there_ends_the_loads_of_the_others() {
    let mut config = shapes::shape("tiny").unwrap();
    config.n_layers = 100;
    config.layers = vec![config.layers[0]; 100];
    let loaded = Arc::new(Mutex::new((0, 0)));
    let seen = Arc::clone(&loaded);
    let builder = Engine::synthetic(config, Dtype::F16, 0).unwrap().devices([DeviceId::Cpu, DeviceId::Gpu(1 << 20)]);
    let builder = builder.on_progress(move |progress| {
        if let Progress::Load { done_bytes, total_bytes, .. } = progress {
            *seen.lock().unwrap() = (done_bytes, total_bytes);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let error = builder.open().err();
    assert!(matches!(error, Some(Error::NoAdapter { .. })), "{error:?}");
    let (done, total) = *loaded.lock().unwrap();
    assert!(done <= total / 2, "{done} of {total} bytes were loaded");
}

#[test]
fn several_engines_live_side_by_side_and_report_their_own_progress() {
    let counts = [0, 0].map(|_| Arc::new(AtomicUsize::new(0)));
    let engines: Vec<Engine> = counts
        .iter()
        .map(|count| {
            let count = Arc::clone(count);
            let builder = Engine::builder(reference("llama-gqa-tied")).unwrap().devices([DeviceId::Cpu]).context(64);
            let progress = move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            };
            builder.on_progress(progress).open().unwrap()
        })
        .collect();
    let loaded: Vec<usize> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
    assert!(loaded.iter().all(|&n| n > 0));
    ids(&mut engines[1].session().unwrap(), &[1, 2, 3], 2);
    assert_eq!(counts[0].load(Ordering::Relaxed), loaded[0]);
    assert!(counts[1].load(Ordering::Relaxed) > loaded[1]);
}

#[test]
fn unknown_adapters_are_named() {
    let open = |id| Engine::builder(reference("llama-mha")).unwrap().devices([id]).open();
    assert!(matches!(open(DeviceId::Gpu(99)).err(), Some(Error::NoAdapter { name, .. }) if name == "99"));
    assert!("gpu".parse::<DeviceId>().is_err());
    let long = Engine::builder(reference("llama-mha")).unwrap().context(100_000).open();
    assert!(matches!(long.err(), Some(Error::ContextFull { .. })));
}
