//! What the agent wrote, and how much of it is kept.

use worker_agent::supervisor::{Content, End, OutputBytes, Stream};

use super::bench::{Bench, ended};

#[tokio::test]
async fn both_streams_are_kept_as_they_were_written() {
    let bench = Bench::new();
    let report = bench
        .run(r"printf 'a\377\376\000b'; printf 'err\200' >&2")
        .await;
    assert_eq!(
        report.output,
        OutputBytes {
            stored: 9,
            dropped: 0
        }
    );
    assert_eq!(bench.stored(Stream::Stdout), b"a\xff\xfe\0b");
    assert_eq!(bench.stored(Stream::Stderr), b"err\x80");
}

#[tokio::test]
async fn a_flood_is_drained_and_bounded() {
    let bench = Bench::new();
    let mut launch = bench.launch("head -c 50000000 /dev/zero | tr '\\0' 'x'");
    launch.output_bytes_max = 100_000;
    let report = ended(bench.spawn(launch).await).await;
    assert_eq!(report.end, End::Exited { code: 0 });
    assert_eq!(
        report.output,
        OutputBytes {
            stored: 100_000,
            dropped: 49_900_000
        }
    );
    assert_eq!(bench.stored(Stream::Stdout), vec![b'x'; 100_000]);
    assert_eq!(
        bench.contents().last(),
        Some(&Content::Truncated {
            dropped: 49_900_000
        })
    );
    let size = bench.dir().join("agent.out").metadata().unwrap().len();
    assert!(size < 200_000, "{size}");
}

#[tokio::test]
async fn what_was_written_just_before_the_end_is_kept() {
    let bench = Bench::new();
    let report = bench.run("head -c 60000 /dev/zero; kill -KILL $$").await;
    assert_eq!(report.end, End::Signalled { signal: 9 });
    assert_eq!(
        report.output,
        OutputBytes {
            stored: 60_000,
            dropped: 0
        }
    );
}

#[tokio::test]
async fn masked_values_are_in_no_file_of_the_output() {
    let bench = Bench::new();
    let script = r#"printf '%.6s' "$TOKEN"; sleep 0.2; printf '%s\n' "${TOKEN#??????}"
        echo "in two" >&2; echo "$TOKEN" | fold -w 5; printf "$TOKEN" >&2
        printf 'x%s' "$TOKEN" | base64; printf '\377%s\377' "$TOKEN"; echo "$OPEN""#;
    let mut launch = bench.launch(script);
    launch.env.insert("TOKEN".into(), "hunter2-hunter2".into());
    launch.env.insert("OPEN".into(), "shown".into());
    launch.masked = ["TOKEN".to_owned(), "UNSET".to_owned()].into();
    let report = ended(bench.spawn(launch).await).await;
    assert_eq!(report.end, End::Exited { code: 0 });
    let stdout = bench.stored(Stream::Stdout);
    let (text, rest) = stdout.split_at(8);
    assert_eq!(text, b"***\n***\n");
    assert!(rest.ends_with(b"\n\xff***\xffshown\n"), "{rest:?}");
    // The first two characters are made of the x as well.
    assert!(rest.starts_with(b"eG***"), "{rest:?}");
    assert_eq!(bench.stored(Stream::Stderr), b"in two\n***");
    assert_eq!(report.output.stored as usize, stdout.len() + 10);
}
