//! The script on two logical adapters of the CPU, with a shape that is nobody's.

use clap::Parser;

use crate::units::Record;
use crate::{Args, Result, report, run};

/// Measures, goes on, and reports in a folder of its own.
pub fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().to_string_lossy().into_owned();
    let line = |more: &[&str]| {
        let common =
            ["paper", "--bench", "--devices", "cpu,cpu", "--shapes", "tiny", "-p", "64,96,160", "--long", "96"];
        let rest = ["--counts", "1,2,4", "-r", "1", "--links", "default,pigeon", "--out", &out];
        Args::try_parse_from(common.iter().chain(&rest).chain(more).copied())
    };

    // No time: nothing is begun, and nothing is there to report.
    let none = run::all(&line(&["--minutes", "0"])?)?;
    assert_eq!((none.measured, none.known, none.left > 0), (0, 0, true), "{none:?}");
    report::write(folder.path())?;
    assert!(!folder.path().join("tables.md").exists());

    // One adapter: short and long. Two: three networks, two links, short and long. Four are not there.
    let args = line(&["--minutes", "60"])?;
    let first = run::all(&args)?;
    let expected = run::Tally { measured: 2 + 12, known: 0, impossible: 12, left: 0 };
    assert_eq!(first, expected);
    let again = run::all(&args)?;
    assert_eq!(again, run::Tally { measured: 0, known: 14, ..expected });
    report::write(folder.path())?;

    let record = |name: &str| -> Result<Record> {
        Ok(serde_json::from_slice(&std::fs::read(folder.path().join(format!("tiny-{name}.json")))?)?)
    };
    // Two lengths, each by four ways and three cuts of the chain.
    let short = record("2-default-own-96")?;
    assert_eq!((short.rows.len(), &short.skipped[..], short.devices.len()), (2 * 7, &[][..], 2));
    assert!(short.rows.iter().all(|row| row["predicted"]["costs"].as_str().is_some_and(|c| c.contains("calibration"))));
    // A length of its own has no others to be predicted from on a network of its own.
    assert_eq!((record("2-default-own-160")?.rows.len(), record("2-default-noisy-160")?.rows.len()), (7, 6));
    assert_eq!(record("1-default-own-96")?.rows.len(), 2);
    let refused = record("2-pigeon-slow-96")?;
    assert!(refused.rows.is_empty() && refused.skipped.len() == 1 && !refused.skipped[0].is_empty(), "{refused:?}");

    let tables = std::fs::read_to_string(folder.path().join("tables.md"))?;
    for says in [
        "### tiny, 10 GB/s, link default",
        "| 2 | runahead, searched |",
        "| 2 | tsp-causal |",
        "- tiny-2-pigeon-own-96: ",
    ] {
        assert!(tables.contains(says), "{says}: {tables}");
    }
    for (plot, says) in [("context.svg", "tiny, 2 adapters"), ("adapters.svg", "bound: transfers free")] {
        let svg = std::fs::read_to_string(folder.path().join(plot))?;
        assert!(svg.starts_with("<svg") && svg.contains(says), "{plot} without {says}");
    }

    // Two logical adapters share their device's memory.
    let device = |index: &str, gib: u64| run::Device { index: index.to_owned(), memory_bytes: Some(gib << 30) };
    let devices = [device("0", 80), device("0", 80), device("1", 24)];
    assert_eq!(run::beyond(&devices, &[20 << 30, 50 << 30, 20 << 30]), None);
    let word = run::beyond(&devices, &[40 << 30, 50 << 30, 20 << 30]);
    assert_eq!(word.as_deref(), Some("adapter 0 has 80.0 GiB of memory, 90.0 are needed"));
    assert!(run::beyond(&devices, &[0, 0, 30 << 30]).is_some_and(|word| word.contains("adapter 1")));
    println!("paper: {} units measured on two logical adapters of the CPU", first.measured);
    Ok(())
}
