use super::*;
use jiff::{SignedDuration, Timestamp};
use meepo_core::{
    id::{Name, NodeId},
    signing::{Kind, Place, Refusal},
};
use std::{os::unix::fs::PermissionsExt, path::Path};

/// RFC 8032 §7.1, test 1, as RFC 8410 writes such a key.
const OF_THE_RFC: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

fn node() -> NodeId {
    Name::new("127.0.0.2").unwrap()
}

fn place(node: &NodeId) -> Place<'_> {
    Place { kind: Kind::Assignment, node: Some(node), key: "/cron/jobs/127.0.0.2/a" }
}

fn ring(signer: &Signer) -> Keyring {
    Keyring::open(Vec::new(), vec![PublicKey::new(signer.public()).unwrap()]).unwrap()
}

#[test]
fn a_key_goes_through_its_files_and_has_one_id() {
    let signer = Signer::from_pem(&generate().unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k.pub");
    std::fs::write(&file, signer.public_pem()).unwrap();
    let [read] = &PublicKey::read(&file).unwrap()[..] else { panic!("one key") };
    assert_eq!((read.id.as_str(), read.pem()), (signer.id(), signer.public_pem()));
    assert_eq!(read.id.len(), 16);
    assert_ne!(Signer::from_pem(&generate().unwrap()).unwrap().id(), signer.id());
    for bad in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", OF_THE_RFC] {
        std::fs::write(&file, bad).unwrap();
        assert!(PublicKey::read(&file).is_err(), "{bad}");
    }
    assert!(Signer::from_pem(&signer.public_pem()).is_err());
}

#[test]
fn signatures_are_those_of_the_rfc() {
    let signer = Signer::from_pem(OF_THE_RFC).unwrap();
    let want = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    assert_eq!(hex(signer.public()), want);
}

#[test]
fn a_private_key_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k");
    std::fs::write(&file, generate().unwrap()).unwrap();
    let mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    mode(0o640);
    let e = format!("{:#}", read_private(&file).unwrap_err());
    assert!(e.contains("640") && e.contains("expected 600"), "{e}");
    mode(0o600);
    read_private(&file).unwrap();
    assert!(read_private(Path::new("/nowhere")).is_err());
}

#[test]
fn a_signature_holds_for_its_value_at_its_place_and_for_nothing_else() {
    let signer = Signer::from_pem(&generate().unwrap()).unwrap();
    let ring = ring(&signer);
    let (node, other) = (node(), Name::new("127.0.0.3").unwrap());
    let hour = Some(SignedDuration::from_hours(1));
    let signature = signer.sign(place(&node), 7, hour, None, "1");
    assert_eq!(ring.verify(place(&node), &signature, "1"), Ok(()));
    let forged = Err(Refusal::Forged { unknown: Vec::new() });
    assert_eq!(ring.verify(place(&node), &signature, "2"), forged);
    assert_eq!(ring.verify(place(&other), &signature, "1"), forged);
    assert_eq!(ring.verify(Place { key: "/x", ..place(&node) }, &signature, "1"), forged);
    assert_eq!(ring.verify(Place { kind: Kind::Kill, ..place(&node) }, &signature, "1"), forged);
    let later =
        signature.expires_at.and_then(|at| at.checked_add(SignedDuration::from_hours(1)).ok());
    for changed in [
        meepo_core::signing::Signature { term: 8, ..signature.clone() },
        meepo_core::signing::Signature { expires_at: later, ..signature.clone() },
        meepo_core::signing::Signature { sig: "AAAA".into(), ..signature.clone() },
        meepo_core::signing::Signature { sig: "?".into(), ..signature.clone() },
    ] {
        assert_eq!(ring.verify(place(&node), &changed, "1"), forged, "{changed:?}");
    }
    let stranger = Signer::from_pem(&generate().unwrap()).unwrap();
    let strange = stranger.sign(place(&node), 7, None, None, "1");
    let trusted = vec![signer.id().to_owned()];
    let unknown = Refusal::UnknownKey { key: stranger.id().to_owned(), trusted };
    assert_eq!(ring.verify(place(&node), &strange, "1"), Err(unknown));
}

#[test]
fn no_two_signatures_have_one_time_and_each_is_newer_than_the_one_it_replaces() {
    let signer = Signer::from_pem(&generate().unwrap()).unwrap();
    let node = node();
    let mut last = Timestamp::MIN;
    for _ in 0..100 {
        let at = signer.sign(place(&node), 1, None, None, "1").issued_at;
        assert!(at > last);
        last = at;
    }
    // Another master's clock was ahead.
    let ahead = Timestamp::now() + SignedDuration::from_secs(60);
    assert!(signer.sign(place(&node), 1, None, Some(ahead), "1").issued_at > ahead);
}

#[test]
fn keys_come_and_go_with_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trusted.pem");
    let [a, b] = [0, 1].map(|_| Signer::from_pem(&generate().unwrap()).unwrap());
    std::fs::write(&file, a.public_pem()).unwrap();
    let ring = Keyring::open(vec![file.clone()], Vec::new()).unwrap();
    let node = node();
    let of = |signer: &Signer| {
        let signature = signer.sign(place(&node), 1, None, None, "1");
        ring.verify(place(&node), &signature, "1").is_ok()
    };
    assert!(of(&a) && !of(&b));
    let wait = |want: (bool, bool)| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while (of(&a), of(&b)) != want {
            assert!(std::time::Instant::now() < deadline, "never {want:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    std::fs::write(&file, a.public_pem() + &b.public_pem()).unwrap();
    wait((true, true));
    // What cannot be read changes nothing.
    std::fs::write(&file, "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(of(&a) && of(&b));
    std::fs::write(&file, b.public_pem()).unwrap();
    wait((false, true));
}
