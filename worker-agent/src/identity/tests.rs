use super::*;

#[test]
fn a_folder_of_a_newer_program_is_refused_with_both_versions_and_left_as_it_is() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join(IDENTITY);
    let newer = br#"{"worker":"w","incarnation":1,"format":9,"written_by":"8.1.0"}"#;
    std::fs::write(&path, newer).unwrap();
    let refused = Identity::take(&StateDir::At(base.path().to_owned()), "host", None);
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("Muster 8.1.0 in format 9") && text.contains("up to format 1"),
        "{text}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), newer);
}

#[test]
fn places_are_taken_in_order_and_incarnations_only_grow() {
    let base = tempfile::tempdir().unwrap();
    let state = StateDir::Within(base.path().to_owned());
    let first = Identity::take(&state, "host", None).unwrap();
    let second = Identity::take(&state, "host", Some(&job("42", 0))).unwrap();
    assert_eq!(
        (first.worker.as_str(), second.worker.as_str()),
        ("host-1", "host-42-2")
    );
    let before = first.incarnation;
    drop(first);
    let again = Identity::take(&state, "host", None).unwrap();
    assert_eq!(again.worker, "host-1");
    assert!(again.incarnation > before);
}

fn job(name: &str, restarts: u32) -> Allocation {
    Allocation {
        name: name.to_owned(),
        restarts,
        is_machine: false,
    }
}

#[test]
fn a_requeued_job_is_a_newer_start_of_its_worker_or_another_worker() {
    let base = tempfile::tempdir().unwrap();
    let within = |folder: &str| StateDir::Within(base.path().join(folder));
    let take = |folder, restarts| {
        let taken = Identity::take(&within(folder), "host", Some(&job("7", restarts))).unwrap();
        (taken.worker.clone(), taken.incarnation)
    };
    let (first, begun) = take("scratch", 0);
    assert_eq!(first, "host-7-1");
    // The scratch is still there: the same worker knows what it held.
    let (again, later) = take("scratch", 1);
    assert!(again == first && later > begun);
    // It is gone: nobody can say that its processes are.
    let (other, begun) = take("new-scratch", 1);
    assert_eq!(other, "host-7.r1-1");
    let (again, later) = take("new-scratch", 2);
    assert!(again == other && later > begun);
    // An earlier life, which a controller that forgot it may have left, is not this one.
    assert_eq!(take("new-scratch", 0).0, "host-7-2");
    let at = StateDir::At(base.path().join("named"));
    let id = |restarts| {
        let taken = Identity::take(&at, "host", Some(&job("7", restarts)));
        taken.unwrap().worker
    };
    let first = id(0);
    assert_eq!(id(1), first);
    assert_eq!(take("scratch", 1).0, "host-7-1");
}

#[test]
fn a_scratch_is_empty_after_its_last_worker_has_left_it_and_other_folders_stay() {
    let base = tempfile::tempdir().unwrap();
    let of_job = base.path().join("muster-7");
    let take = |state: &StateDir| Identity::take(state, "host", Some(&job("7", 0))).unwrap();
    let scratch = StateDir::Scratch(of_job.join("worker"));
    let (one, other) = (take(&scratch), take(&scratch));
    std::fs::write(one.shared.join("objects"), "").unwrap();
    one.leave();
    assert!(other.shared.join("objects").exists());
    other.leave();
    assert!(!of_job.exists() && base.path().exists());
    let within = take(&StateDir::Within(of_job.join("worker")));
    let folder = within.folder.clone();
    within.leave();
    assert!(folder.join(IDENTITY).exists());
}

#[test]
fn a_link_in_the_scratch_is_not_followed() {
    let (base, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of_job = base.path().join("muster-7");
    std::fs::create_dir(&of_job).unwrap();
    std::os::unix::fs::symlink(victim.path(), of_job.join("worker")).unwrap();
    let linked = StateDir::Scratch(of_job.join("worker"));
    let refused = Identity::take(&linked, "host", Some(&job("7", 0))).unwrap_err();
    assert!(matches!(refused, Error::NotOurs(_)), "{refused}");
}

#[test]
fn a_scratch_whose_name_somebody_took_has_another_one() {
    let (base, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let named = || {
        let entries = std::fs::read_dir(base.path()).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let of_job = base.path().join("muster-8");
    let scratch = StateDir::Scratch(of_job.join("worker"));
    let take = || Identity::take(&scratch, "host", Some(&job("8", 0))).unwrap();
    for taken in ["a link", "a file"] {
        match taken {
            "a link" => std::os::unix::fs::symlink(victim.path(), &of_job).unwrap(),
            _ => std::fs::write(&of_job, "").unwrap(),
        }
        let (one, other) = (take(), take());
        assert!(one.worker.starts_with("host-8-"), "{}", one.worker);
        assert_ne!(one.worker, other.worker);
        let around = one.folder.ancestors().nth(2).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(around).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(named().len(), 3);
        one.leave();
        other.leave();
        assert_eq!(named(), ["muster-8"]);
        assert_eq!(std::fs::read_dir(victim.path()).unwrap().count(), 0);
        std::fs::remove_file(&of_job).unwrap();
    }
    take();
    assert!(of_job.join("worker").is_dir(), "nobody has taken it");
}

#[test]
fn workers_of_one_job_have_different_ids_even_with_a_scratch_each() {
    let find = |set: &[(&'static str, &'static str)]| {
        let set: std::collections::BTreeMap<_, _> = set.iter().copied().collect();
        Allocation::find(|name| set.get(name).map(|value| (*value).to_owned()))
    };
    let named = |name: &str| Some(job(name, 0));
    assert_eq!(find(&[("SLURM_PROCID", "1")]), None);
    assert_eq!(find(&[("SLURM_JOB_ID", "")]), None);
    // Two tasks of an array, and of a job.
    let array = |id| {
        [
            ("SLURM_JOB_ID", id),
            ("SLURM_ARRAY_JOB_ID", "8"),
            ("SLURM_PROCID", "0"),
        ]
    };
    assert_eq!(find(&array("8")), named("8"));
    assert_eq!(find(&array("9")), named("9"));
    let second = [("SLURM_JOB_ID", "8"), ("SLURM_PROCID", "1")];
    assert_eq!(find(&second), named("8.t1"));
    let requeued = [("SLURM_JOB_ID", "8"), ("SLURM_RESTART_COUNT", "2")];
    assert_eq!(find(&requeued), Some(job("8", 2)));
    let told = [
        ("SLURM_JOB_ID", "8"),
        ("MUSTER_ALLOCATION", "gpu-3"),
        ("SLURM_PROCID", "1"),
    ];
    assert_eq!(find(&told), named("gpu-3"));
}

#[test]
fn an_incarnation_grows_although_the_wall_clock_went_back() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::At(folder.path().to_owned());
    let worker = Identity::take(&state, "host", None).unwrap().worker;
    let incarnation = u64::MAX - 5;
    // As the first program wrote it.
    let stored = serde_json::json!({ "worker": worker, "incarnation": incarnation });
    let stored = serde_json::to_vec(&stored).unwrap();
    std::fs::write(folder.path().join(IDENTITY), stored).unwrap();
    let identity = Identity::take(&state, "host", None).unwrap();
    assert_eq!(identity.incarnation, u64::MAX - 4);
    let taken = Identity::take(&state, "host", None);
    assert!(matches!(taken, Err(Error::Taken(_))));
}

#[test]
fn a_place_stays_with_the_host_that_began_it() {
    let base = tempfile::tempdir().unwrap();
    let state = StateDir::Within(base.path().to_owned());
    drop(Identity::take(&state, "one", None).unwrap());
    assert_eq!(Identity::take(&state, "two", None).unwrap().worker, "two-2");
    assert_eq!(Identity::take(&state, "one", None).unwrap().worker, "one-1");
}

#[test]
fn an_allocation_keeps_its_state_on_the_nodes_scratch() {
    let variables = |set: &'static [(&str, &str)]| {
        move |name: &str| {
            let found = set.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    };
    let within = |path: &str| StateDir::Within(path.into());
    let slurm = variables(&[
        ("SLURM_JOB_ID", "7"),
        ("TMPDIR", "/scratch"),
        ("HOME", "/h"),
    ]);
    assert_eq!(
        StateDir::find(slurm).unwrap(),
        StateDir::Scratch("/scratch/muster-7/worker".into())
    );
    let home = variables(&[("MUSTER_HOME", "/m"), ("HOME", "/h")]);
    assert_eq!(StateDir::find(home).unwrap(), within("/m/worker"));
    let user = variables(&[("HOME", "/h"), ("XDG_STATE_HOME", "")]);
    assert_eq!(
        StateDir::find(user).unwrap(),
        within("/h/.local/state/muster/worker")
    );
    assert!(matches!(StateDir::find(variables(&[])), Err(Error::NoHome)));
}

#[test]
fn garbage_for_an_identity_is_named_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(IDENTITY), "garbage").unwrap();
    let refused = stored(folder.path()).unwrap_err().to_string();
    let refused = refused.replace(&folder.path().display().to_string(), "STATE");
    assert_eq!(
        refused,
        "cannot understand STATE/identity.json; move it away: the worker makes it anew, with \
         the same id"
    );
}
