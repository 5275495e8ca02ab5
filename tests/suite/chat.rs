//! `runahead chat` over a pipe: what each turn prefills, sessions between processes, interrupts, streams that close.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::cli::{command, json, stderr, stdout, text, tiny};
use super::weights::smollm2;

fn chat_command(args: &[&str]) -> Command {
    let model = text(smollm2());
    let mut command = command(&["chat", "--devices", "cpu"]);
    let defaults = [["-m", &model], ["-n", "10"]];
    command.args(defaults.iter().filter(|[name, _]| !args.contains(name)).flatten()).args(args).stdin(Stdio::piped());
    command
}

/// A whole conversation from a pipe.
fn chat(args: &[&str], input: &[u8]) -> Output {
    let mut child = chat_command(args).spawn().unwrap();
    // A command that ended early has closed the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn well(args: &[&str], input: &str) -> (Vec<String>, String) {
    let output = chat(args, input.as_bytes());
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    (String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect(), told)
}

/// Prefilled tokens, all tokens, and generated tokens of each turn.
fn turns(told: &str) -> Vec<[usize; 3]> {
    let number = |line: &str, before: &str| {
        let rest = &line[line.find(before).unwrap() + before.len()..];
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    let lines = told.lines().filter(|line| line.starts_with("prefilled "));
    lines.map(|line| [number(line, "prefilled "), number(line, " of "), number(line, "; ")]).collect()
}

const ASK: [&str; 3] =
    ["Write a line about the sea.", "And one about the mountains, please.", "Which of the two is the higher one?"];

#[test]
fn every_turn_prefills_its_own_tokens_alone() {
    let (answers, told) = well(&[], &ASK.join("\n"));
    let turns = turns(&told);
    assert_eq!((turns.len(), answers.is_empty()), (3, false), "{told}");
    assert_eq!(turns[0][0], turns[0][1], "the first turn has nothing in the cache");
    for pair in turns.windows(2) {
        let ([_, before, answered], [new, all, _]) = (pair[0], pair[1]);
        // The cache has all but the last generated token, whose row is computed with the next turn.
        assert_eq!(all - new, before + answered - 1, "{told}");
        assert!(new < 30, "{told}");
    }
    assert!(!told.contains('\x1b'), "bars are for terminals: {told:?}");
}

#[test]
fn a_conversation_goes_on_in_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (text(folder.path().join("a.session")), text(folder.path().join("b.session")));
    let (whole, told) = well(&[], &format!("{}\n{}\n/save {path}\n{}\n", ASK[0], ASK[1], ASK[2]));
    let third = turns(&told)[2];

    let (loaded, told) = well(&[], &format!("/load {path}\n{}\n", ASK[2]));
    assert!(told.contains("4 messages"), "{told}");
    assert_eq!(turns(&told), [third], "the new process prefills the third turn alone");
    assert!(whole.ends_with(&loaded), "{whole:?} {loaded:?}");

    // `--session` does both without being told to.
    let (first, _) = well(&["--session", &other], &format!("{}\n", ASK[0]));
    let (second, _) = well(&["--session", &other], &format!("{}\n", ASK[1]));
    let (last, told) = well(&["--session", &other], &format!("{}\n/history\n", ASK[2]));
    assert_eq!(turns(&told), [third]);
    assert_eq!([&first[..], &second, &last[..loaded.len()]].concat(), whole);
    let history = last[loaded.len()..].iter().filter(|line| line.starts_with("user: ")).collect::<Vec<_>>();
    assert_eq!(history, ASK.map(|ask| format!("user: {ask}")).iter().collect::<Vec<_>>());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no unfinished file stays");
}

#[test]
fn commands_change_the_conversation() {
    let input = format!("/system You are a pirate.\n{}\n/clear\n/history\n{}\n/exit\nnever read\n", ASK[0], ASK[1]);
    let (lines, told) = well(&["--system", "Be brief."], &input);
    let history = lines.iter().position(|line| line == "system: You are a pirate.").unwrap();
    assert!(!lines[history + 1].starts_with("user:"), "{lines:?}");
    let turns = turns(&told);
    assert_eq!((turns.len(), turns[1][0]), (2, turns[1][1]), "after /clear nothing is in the cache: {told}");
}

#[test]
fn what_goes_wrong_is_told_and_the_conversation_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad");
    std::fs::write(&path, "no session").unwrap();
    let mut input = format!("/nonsense\n/load {}\n/load /nowhere/x\n/save\n/save /no/such/folder/x\n", text(&path));
    input += &format!("{}\n", "far too long ".repeat(400));
    let input = [input.as_bytes(), b"caf\xe9\n", ASK[0].as_bytes()].concat();
    let output = chat(&["--context", "256"], &input);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let says = [
        "no command /nonsense",
        "10 bytes are no session",
        "/nowhere/x",
        "/save needs",
        "/no/such/folder",
        "do not fit",
        "not UTF-8",
    ];
    let errors = told.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
    assert_eq!(errors.len(), says.len(), "{told}");
    for (error, says) in errors.iter().zip(says) {
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(turns(&told).len(), 1, "{told}");
}

#[test]
fn a_model_without_a_template_and_bad_settings_are_refused() {
    let tiny = text(super::chain::reference("llama-mha"));
    let output = command(&["chat", "-m", &tiny, "--devices", "cpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("chat template"), "{}", stderr(&output));
    for bad in [["--temperature", "-1"], ["--top-p", "0"], ["--stop", ""]] {
        assert_eq!(chat(&bad, b"").status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn an_end_of_input_and_a_closed_stdout_are_clean_ends() {
    let (lines, told) = well(&[], "");
    assert!(lines.is_empty() && turns(&told).is_empty());

    let folder = tempfile::tempdir().unwrap();
    let path = text(folder.path().join("x"));
    let mut child = chat_command(&["--session", &path]).spawn().unwrap();
    drop(child.stdout.take());
    child.stdin.as_mut().unwrap().write_all(format!("{}\n{}\n", ASK[0], ASK[1]).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let (history, _) = well(&["--session", &path], "/history\n");
    assert_eq!(history[0], format!("user: {}", ASK[0]), "what nobody read is not lost");
}

#[test]
fn a_session_of_another_model_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = text(folder.path().join("foreign"));
    let tiny = ["generate", "-m", &tiny(), "--tokens", "1,2,3", "-n", "2", "--devices", "cpu", "--session", &path];
    stdout(&tiny);
    let before = std::fs::read(&path).unwrap();

    let (lines, told) = well(&[], &format!("{}\n/load {path}\n/history\n{}\n", ASK[0], ASK[1]));
    assert!(told.contains("a session of another model"), "{told}");
    assert!(lines.contains(&format!("user: {}", ASK[0])), "{lines:?}");
    assert!(turns(&told)[1][0] < 30, "the cache is kept: {told}");
    let output = chat(&["--session", &path], format!("{}\n", ASK[0]).as_bytes());
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{}", stderr(&output));
    assert!(std::fs::read(&path).unwrap() == before);
}

/// SmolLM2 with another chat template, written over its own.
fn with_template(folder: &Path, template: &str) -> String {
    let mut file = std::fs::read(smollm2()).unwrap();
    let key = b"tokenizer.chat_template";
    // Behind the key: the value's type and its length.
    let start = file.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4 + 8;
    let len = u64::from_le_bytes(file[start - 8..start].try_into().unwrap()) as usize;
    let padded = format!("{template}{{#{}#}}", " ".repeat(len - template.len() - 4));
    file[start..start + len].copy_from_slice(padded.as_bytes());
    let path = folder.join("model.gguf");
    std::fs::write(&path, file).unwrap();
    text(path)
}

#[test]
fn a_template_that_fails_costs_the_turn_alone() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{% if m.content == 'No.' %}{{ raise_exception('no such talk') }}{% endif %}\
                    {{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}<|im_start|>assistant\n";
    let model = with_template(folder.path(), template);
    let input = format!("{}\nNo.\n{}\n/history\n", ASK[0], ASK[1]);
    let (lines, told) = well(&["-m", &model], &input);
    let errors = told.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
    assert!(errors.len() == 1 && errors[0].contains("no such talk"), "{told}");
    assert_eq!(turns(&told).len(), 2, "{told}");
    assert!(turns(&told)[1][0] < 30, "the cache is kept: {told}");
    let asked = lines.iter().filter(|line| line.starts_with("user: ")).collect::<Vec<_>>();
    assert_eq!(asked, [&format!("user: {}", ASK[0]), &format!("user: {}", ASK[1])]);

    let output = command(&["generate", "-m", &model, "-p", "No.", "--devices", "cpu"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{}", stderr(&output));
}

#[cfg(target_os = "linux")]
fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

#[cfg(target_os = "linux")]
const LONG: &str = "Tell a very long story about a lighthouse keeper and the sea.";

#[cfg(target_os = "linux")]
#[test]
fn a_request_to_terminate_keeps_the_answer_so_far() {
    let folder = tempfile::tempdir().unwrap();
    let (chats, generates) = (text(folder.path().join("c")), text(folder.path().join("g")));
    let model = text(smollm2());
    let mut generate = command(&["generate", "-m", &model, "-p", LONG, "-n", "3000", "--devices", "cpu"]);
    generate.args(["--session", &generates]);
    for mut command in [chat_command(&["-n", "3000", "--session", &chats]), generate] {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(format!("{LONG}\n").as_bytes()).unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 9]).unwrap();
        // As a closed terminal does, which tells twice.
        signal("-TERM", child.id());
        signal("-TERM", child.id());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    }
    let (history, _) = well(&["--session", &chats], "/history\n");
    assert_eq!(history[0], format!("user: {LONG}"));
    assert!(history[1].len() > "assistant: ".len() + 8, "{history:?}");
    let again =
        ["generate", "-m", &model, "-p", LONG, "-n", "1", "--devices", "cpu", "--json", "--session", &generates];
    let report = json(&again);
    assert_eq!(report["cached_tokens"].as_u64().unwrap() + 1, report["prompt_tokens"].as_u64().unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no unfinished file stays");
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_that_goes_away_ends_the_chat_and_saves_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, id) = (text(folder.path().join("session")), folder.path().join("id"));
    let model = text(smollm2());
    let mut inner = format!("echo $$ > {}; exec ", text(&id));
    inner += &format!(
        "{} chat -m {model} --devices cpu -n 3000 --session {path} 2>/dev/null",
        env!("CARGO_BIN_EXE_runahead")
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--command", &inner, "/dev/null"]);
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(format!("{LONG}\n").as_bytes()).unwrap();
    // The terminal shows the question as it was typed, then the answer.
    let mut shown = Vec::new();
    while String::from_utf8_lossy(&shown).split("sea.").nth(1).is_none_or(|answer| answer.trim().len() <= 20) {
        let mut more = [0; 64];
        let n = std::io::Read::read(child.stdout.as_mut().unwrap(), &mut more).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&shown));
        shown.extend(&more[..n]);
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let id = std::fs::read_to_string(id).unwrap();
    let runs = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", id.trim())).unwrap_or_default();
        status.contains("State:") && !status.contains("State:\tZ")
    };
    let began = std::time::Instant::now();
    while runs() {
        assert!(began.elapsed().as_secs() < 30, "it goes on without a terminal");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (history, _) = well(&["--session", &path], "/history\n");
    assert_eq!(history[0], format!("user: {LONG}"));
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_stops_an_answer_and_keeps_the_conversation() {
    let mut child = chat_command(&["-n", "3000", "--stop", "never said"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Tell a very long story about a lighthouse keeper and the sea.\n").unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    signal("-INT", child.id());
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(told.by_ref().any(|line| line == "(stopped)"));

    stdin.write_all(b"/history\n/help\n").unwrap();
    assert!(told.by_ref().any(|line| line.contains("/history")), "the command goes on");
    // At the prompt, Ctrl-C is the end.
    signal("-INT", child.id());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let rest: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(rest.iter().any(|line| line.starts_with("user: Tell")), "{rest:?}");
    assert!(rest.iter().any(|line| line.starts_with("assistant: ")), "{rest:?}");
}
