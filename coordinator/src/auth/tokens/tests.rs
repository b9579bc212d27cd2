use super::*;

const NOON: Timestamp = Timestamp::constant(1_800_000_000, 0);
const LATER: Timestamp = Timestamp::constant(1_800_003_600, 0);
const CA: Fingerprint = Fingerprint::from_bytes([3; 32]);

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> TokenStore {
        let key = SecretKey::open(self.0.path()).unwrap();
        TokenStore::open(self.0.path(), &key).unwrap()
    }
}

fn new(role: Role) -> NewToken {
    NewToken {
        role,
        name: "for a test".into(),
        expires: None,
    }
}

#[test]
fn each_role_comes_back_from_its_token_after_a_restart() {
    let home = Home::new();
    let roles = [
        Role::Worker {
            pool: "slurm".into(),
        },
        Role::Viewer,
        Role::Operator,
        Role::Admin,
    ];
    for role in roles {
        let token = home.store().create(&new(role.clone()), CA, NOON).unwrap();
        let identity = home.store().verify(token.id, &token.secret, NOON).unwrap();
        assert_eq!(identity, Identity::of_token(role, token.id));
    }
}

#[test]
fn a_wrong_secret_an_unknown_id_and_an_ended_token_are_refused() {
    let home = Home::new();
    let store = home.store();
    let token = store
        .create(
            &NewToken {
                expires: Some(LATER),
                ..new(Role::Viewer)
            },
            CA,
            NOON,
        )
        .unwrap();
    let wrong = Secret::from_bytes([0; 32]);
    assert!(matches!(
        store.verify(token.id, &wrong, NOON),
        Err(Unverified::Unknown)
    ));
    let nobody = TokenId::from_bytes([0; 8]);
    assert!(matches!(
        store.verify(nobody, &token.secret, NOON),
        Err(Unverified::Unknown)
    ));
    assert!(store.verify(token.id, &token.secret, NOON).is_ok());
    let ended = store.verify(token.id, &token.secret, LATER);
    assert!(matches!(ended, Err(Unverified::Expired { .. })));
    assert!(store.is_live(token.id, NOON).is_ok() && store.is_live(token.id, LATER).is_err());
}

#[test]
fn a_running_coordinator_sees_what_another_process_creates_and_revokes() {
    let home = Home::new();
    let (serving, other) = (home.store(), home.store());
    let first = serving.create(&new(Role::Admin), CA, NOON).unwrap();
    assert!(serving.verify(first.id, &first.secret, NOON).is_ok());

    let token = other.create(&new(Role::Operator), CA, NOON).unwrap();
    assert!(serving.verify(token.id, &token.secret, NOON).is_ok());
    other.revoke(token.id, LATER).unwrap();
    let refused = serving.verify(token.id, &token.secret, NOON);
    assert!(matches!(refused, Err(Unverified::Revoked { .. })));
    assert!(serving.is_live(token.id, NOON).is_err());
}

#[test]
fn revoking_again_keeps_the_first_time_and_an_unknown_id_is_an_error() {
    let home = Home::new();
    let store = home.store();
    let token = store.create(&new(Role::Viewer), CA, NOON).unwrap();
    assert_eq!(store.revoke(token.id, NOON).unwrap().revoked, Some(NOON));
    assert_eq!(store.revoke(token.id, LATER).unwrap().revoked, Some(NOON));
    let unknown = store.revoke(TokenId::from_bytes([0; 8]), NOON);
    assert!(matches!(unknown, Err(Error::Unknown { .. })));
}

#[test]
fn the_list_shows_everything_but_the_secret() {
    let home = Home::new();
    let store = home.store();
    let token = store
        .create(
            &new(Role::Worker {
                pool: "local".into(),
            }),
            CA,
            NOON,
        )
        .unwrap();
    let expected = TokenRecord {
        id: token.id,
        role: Role::Worker {
            pool: "local".into(),
        },
        name: "for a test".into(),
        created: NOON,
        expires: None,
        revoked: None,
    };
    assert_eq!(store.list().unwrap(), vec![expected]);
}

#[test]
fn no_file_of_the_store_holds_a_secret_or_can_be_read_by_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new();
    let store = home.store();
    let token = store.create(&new(Role::Admin), CA, NOON).unwrap();
    for entry in std::fs::read_dir(home.0.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        let bytes = std::fs::read(entry.path()).unwrap();
        let holds = bytes
            .windows(32)
            .any(|window| window == token.secret.expose());
        assert!(!holds, "{:?}", entry.file_name());
    }
}

#[test]
fn a_name_must_be_short_and_printable() {
    let home = Home::new();
    let store = home.store();
    for name in ["", "  ", "a\nb", &"x".repeat(101)] {
        let bad = NewToken {
            name: name.into(),
            ..new(Role::Viewer)
        };
        assert!(matches!(
            store.create(&bad, CA, NOON),
            Err(Error::Text { what: "name" })
        ));
    }
    let bad = new(Role::Worker {
        pool: String::new(),
    });
    assert!(matches!(
        store.create(&bad, CA, NOON),
        Err(Error::Text { what: "pool" })
    ));
}

#[test]
fn a_damaged_or_newer_store_is_named() {
    let home = Home::new();
    let key = SecretKey::open(home.0.path()).unwrap();
    let path = home.0.path().join(NAME);
    std::fs::write(&path, vec![b'x'; 5000]).unwrap();
    let error = TokenStore::open(home.0.path(), &key).unwrap_err();
    assert!(error.to_string().contains("tokens.db"), "{error}");

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = TokenStore::open(home.0.path(), &key).unwrap_err();
    assert!(matches!(error, Error::Newer { form: 99, .. }), "{error}");
}

#[test]
fn starts_at_the_same_time_share_one_store() {
    let home = Home::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| home.store().create(&new(Role::Viewer), CA, NOON).unwrap());
        }
    });
    assert_eq!(home.store().list().unwrap().len(), 4);
}
