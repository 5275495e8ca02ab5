//! Chat templates in the style of the families', with the constructs that the real ones use, against Jinja2 as Hugging Face transformers sets it up; see
//! `tests/data/README.md`.

use std::path::Path;

use runahead::dates::Date;
use runahead::error::Error;
use runahead::template::{ChatTemplate, Message};
use serde_json::Value;

/// When the expected texts were made.
const NOW: u64 = 1_700_000_000;

#[test]
fn the_families_templates_give_the_texts_of_jinja2() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for (family, cases) in expected.as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(format!("{family}.jinja"))).unwrap();
        let template = ChatTemplate::new(source, "<s>", "</s>");
        for case in cases.as_array().unwrap() {
            let text = |part: &Value| part.as_str().unwrap().to_owned();
            let talk = case[0].as_array().unwrap().iter();
            let talk: Vec<Message> = talk.map(|m| Message::new(text(&m[0]), text(&m[1]))).collect();
            let got = template.render_at(Date::of_unix(NOW), &talk, case[1].as_bool().unwrap());
            let same = match (&got, &case[2]) {
                (Ok(got), want) => Some(got.as_str()) == want.as_str(),
                (Err(Error::Template(reason)), want) => want["error"].as_str().is_some_and(|e| reason.contains(e)),
                _ => false,
            };
            if !same {
                wrong.push(format!("{family} {talk:?}: {got:?}, not {}", case[2]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_date_that_cannot_be_written_and_marks_that_do_not_end_are_errors() {
    let render = |source: &str| ChatTemplate::new(source, "", "").render(&[], true);
    assert!(render("{{ strftime_now('%Q') }}").is_err());
    assert_eq!(render("{{ strftime_now('%Y-%m-%d') }}").unwrap().len(), 10);
    assert!(render("{% generation %}").is_err());
    assert!(render("{% generation").is_err());
    assert_eq!(
        render("a\n  {% generation %}\n b {%- endgeneration -%} \nc{{ '{% generation' }}").unwrap(),
        "a\n bc{% generation"
    );
}
