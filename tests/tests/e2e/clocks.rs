//! The shim that changes clocks does what the tests that use it believe.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::clocks::Clocks;
use muster_tests::process::Program;
use muster_tests::wait::SOON;

use crate::Scenario;

pub(crate) const SCENARIOS: &[(&str, Scenario)] =
    &[("a_process_sees_the_clocks_that_it_is_shown", shown_clocks)];

/// Prints the wall clock twice, the monotonic clock and CLOCK_BOOTTIME in seconds.
const CODE: &str = r#"
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
int main(void) {
    struct timespec mono, boot;
    struct timeval day;
    clock_gettime(CLOCK_MONOTONIC, &mono);
    clock_gettime(CLOCK_BOOTTIME, &boot);
    gettimeofday(&day, NULL);
    printf("%ld %ld %ld %ld\n", time(NULL), day.tv_sec, mono.tv_sec, boot.tv_sec);
    return 0;
}
"#;

fn shown_clocks(programs: &Programs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (code, path) = (folder.join("seen.c"), folder.join("seen"));
    std::fs::write(&code, CODE)?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
    Program::new(Path::new(&compiler), folder)
        .args([Path::new("-o"), &path, &code])
        .run(folder, SOON)?
        .success()?;
    let clocks = Clocks::new(&programs.source, folder, "a")?;
    let plain = Program::new(&path, folder);
    let shown = clocks.apply(plain.clone());
    let seen = |program: &Program| -> Result<Vec<i64>> {
        let printed = program.run(folder, SOON)?.success()?.out;
        let numbers = printed.split_whitespace().map(str::parse);
        Ok(numbers.collect::<Result<_, _>>()?)
    };
    let asleep = 1_000_i64;
    for (wall, asleep) in [(0, 0), (3_600, asleep), (-3_600, asleep)] {
        clocks.wall(wall)?;
        clocks.slept(Duration::from_secs(asleep.unsigned_abs()))?;
        let (was, now) = (seen(&plain)?, seen(&shown)?);
        let shifts = [wall, wall, -asleep, 0];
        let right = was.iter().zip(&now).zip(shifts);
        let mut right = right.map(|((was, now), shift)| now - was - shift);
        ensure!(
            right.all(|off| (0..60).contains(&off)),
            "shifted by {shifts:?}: {was:?} became {now:?}"
        );
    }
    Ok(())
}
