//! `runahead chat` over a pipe: what each turn prefills, sessions between processes, interrupts, streams that close.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use super::cli::{command, stderr, text};
use super::weights::smollm2;

fn chat_command(args: &[&str]) -> Command {
    let model = text(smollm2());
    let mut command = command(&["chat", "-m", &model, "--devices", "cpu"]);
    let n: &[&str] = if args.contains(&"-n") { &[] } else { &["-n", "10"] };
    command.args(n).args(args).stdin(Stdio::piped());
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
}

#[cfg(target_os = "linux")]
fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_stops_an_answer_and_keeps_the_conversation() {
    let mut child = chat_command(&["-n", "3000", "--stop", "never said"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Tell a very long story about a lighthouse keeper and the sea.\n").unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    interrupt(&child);
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(told.by_ref().any(|line| line == "(stopped)"));

    stdin.write_all(b"/history\n/help\n").unwrap();
    assert!(told.by_ref().any(|line| line.contains("/history")), "the command goes on");
    // At the prompt, Ctrl-C is the end.
    interrupt(&child);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let rest: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(rest.iter().any(|line| line.starts_with("user: Tell")), "{rest:?}");
    assert!(rest.iter().any(|line| line.starts_with("assistant: ")), "{rest:?}");
}
