//! Tests of the room `spec/user`.

use proptest::prelude::*;

use super::*;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh
broken line
:x:7:7::/:
short:x:8
nobody:x:65534:65533:nobody:/:/bin/false
app:x:1000:1001::/home/app:/bin/sh
huge:x:4294967295:0::/:
huge2:x:99999999999999999999:0::/:
neg:x:-1:0::/:
4294967296:x:0:0::/:/bin/sh
0x0:x:0:0::/:
twice:x:5:5::/:
twice:x:0:0::/:
\xff\xfe:x:3:3::/:
last:x:77:78";

const GROUP: &[u8] = b"root:x:0:
app:x:1001:
staff:x:50000:other,app
wheel:x:10: app ,x
broken
big:x:4294967296:app
audio:x:29:app,
dup:x:10:app
4294967296:x:0:";

fn security() -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext::default()
}

fn of(security: &cri::LinuxContainerSecurityContext, image: &str) -> Result<Identity, UserError> {
    resolve(security, image, Some(PASSWD), Some(GROUP))
}

fn int(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

#[test]
fn the_images_user_in_all_its_forms() {
    let cases: &[(&str, u32, u32, &[u32])] = &[
        ("", 0, 0, &[0]),
        ("0", 0, 0, &[0]),
        ("root", 0, 0, &[0]),
        ("app", 1000, 1001, &[1001, 50000, 10, 29]),
        ("1000", 1000, 1001, &[1001, 50000, 10, 29]),
        ("1000:", 1000, 1001, &[1001, 50000, 10, 29]),
        ("1234", 1234, 0, &[0]),
        ("1234:5678", 1234, 5678, &[5678]),
        ("app:staff", 1000, 50000, &[50000, 10, 29]),
        ("app:7", 1000, 7, &[7, 50000, 10, 29]),
        ("1234:staff", 1234, 50000, &[50000]),
        (":7", 0, 7, &[7]),
        ("nobody", 65534, 65533, &[65533]),
        ("twice", 5, 5, &[5]),
        ("last", 77, 78, &[78]),
        ("2147483647", 2147483647, 0, &[0]),
    ];
    for (image, uid, gid, groups) in cases {
        let got = of(&security(), image).unwrap_or_else(|e| panic!("{image:?}: {e}"));
        assert_eq!((got.uid, got.gid, got.groups.as_slice()), (*uid, *gid, *groups), "{image:?}");
    }
    assert_eq!(resolve(&security(), "5", None, None).unwrap().groups, [0]);
}

#[test]
fn cve_2024_40635_numbers_that_do_not_fit_never_run() {
    for text in ["2147483648", "4294967295", "4294967296", "-1", "1e10", "0x0", "１", "+5", "0010", "1.5", "00", "1_0"]
    {
        for image in [text.to_owned(), format!("{text}:0"), format!("app:{text}"), format!("0:{text}")] {
            assert!(of(&security(), &image).is_err(), "{image} ran");
        }
        assert!(of(&cri::LinuxContainerSecurityContext { run_as_username: text.into(), ..security() }, "").is_err());
    }
    for value in [-1, i64::from(i32::MAX) + 1, 4294967295, 4294967296, i64::MIN, i64::MAX] {
        let by_user = cri::LinuxContainerSecurityContext { run_as_user: int(value), ..security() };
        assert!(of(&by_user, "").is_err(), "run_as_user {value}");
        let by_group =
            cri::LinuxContainerSecurityContext { run_as_user: int(1), run_as_group: int(value), ..security() };
        assert!(of(&by_group, "").is_err(), "run_as_group {value}");
        let by_list =
            cri::LinuxContainerSecurityContext { run_as_user: int(1), supplemental_groups: vec![value], ..security() };
        assert!(of(&by_list, "").is_err(), "supplemental_groups {value}");
    }
}

#[test]
fn cve_2026_46680_digits_are_never_a_name() {
    // The files do have such a user and such a group, and they are root's.
    for image in ["4294967296", "app:4294967296", "0x0"] {
        assert!(matches!(of(&security(), image), Err(UserError::Number { .. })), "{image}");
    }
}

#[test]
fn names_that_lead_nowhere_are_named() {
    for image in
        ["ghost", "app:ghosts", "huge", "huge2", "neg", "short", "a:b:c", "a b", "a\nb", "ap\0p", "é", "\u{ff}"]
    {
        let error = of(&security(), image).expect_err(image).to_string();
        assert!(error.contains(&format!("{image:?}")), "{error}");
    }
}

#[test]
fn the_request_goes_before_the_image() {
    let by_id = cri::LinuxContainerSecurityContext { run_as_user: int(1000), ..security() };
    assert_eq!(of(&by_id, "nobody:7").unwrap(), Identity { uid: 1000, gid: 1001, groups: vec![1001, 50000, 10, 29] });
    let stranger = cri::LinuxContainerSecurityContext { run_as_user: int(31337), ..security() };
    assert_eq!(of(&stranger, "nobody:7").unwrap(), Identity { uid: 31337, gid: 0, groups: vec![0] });
    let named = cri::LinuxContainerSecurityContext { run_as_username: "nobody".into(), ..security() };
    assert_eq!(of(&named, "app").unwrap().uid, 65534);
    let with_group =
        cri::LinuxContainerSecurityContext { run_as_user: int(1001), run_as_group: int(1002), ..security() };
    assert_eq!(of(&with_group, "").unwrap(), Identity { uid: 1001, gid: 1002, groups: vec![1002] });
    let absent = cri::LinuxContainerSecurityContext { run_as_username: "31337".into(), ..security() };
    assert!(matches!(of(&absent, ""), Err(UserError::NoUser { .. })));
    let both = cri::LinuxContainerSecurityContext { run_as_user: int(1), run_as_username: "app".into(), ..security() };
    assert!(matches!(of(&both, ""), Err(UserError::Both { .. })));
    let only_group = cri::LinuxContainerSecurityContext { run_as_group: int(1), ..security() };
    assert!(matches!(of(&only_group, "app"), Err(UserError::GroupWithoutUser { gid: 1 })));
}

#[test]
fn cve_2023_25173_the_primary_group_is_always_a_supplementary_one() {
    for image in ["", "app", "1234:5678", "app:staff"] {
        let got = of(&security(), image).unwrap();
        assert_eq!(got.groups[0], got.gid, "{image}");
    }
}

#[test]
fn merge_adds_the_images_groups_last_and_strict_does_not() {
    let group = b"default-user:x:1000:\nextra:x:50000:default-user";
    let passwd = b"default-user:x:1000:1000::/home:/bin/sh";
    let merge = cri::LinuxContainerSecurityContext {
        run_as_user: int(1000),
        supplemental_groups: vec![1234, 1000],
        ..security()
    };
    assert_eq!(resolve(&merge, "", Some(passwd), Some(group)).unwrap().groups, [1000, 1234, 50000]);
    let strict = cri::LinuxContainerSecurityContext { supplemental_groups_policy: 1, ..merge.clone() };
    assert_eq!(resolve(&strict, "", Some(passwd), Some(group)).unwrap().groups, [1000, 1234]);
    let unknown = cri::LinuxContainerSecurityContext { supplemental_groups_policy: 9, ..merge };
    assert_eq!(resolve(&unknown, "", None, None), Err(UserError::Policy { value: 9 }));
}

#[test]
fn cve_2026_47262_the_files_are_bounded() {
    let large = vec![b'\n'; MAX_FILE_SIZE + 1];
    assert!(matches!(resolve(&security(), "", Some(&large), None), Err(UserError::FileTooLarge { .. })));
    assert!(matches!(resolve(&security(), "", None, Some(&large)), Err(UserError::FileTooLarge { .. })));
    let one_line = vec![b'a'; MAX_FILE_SIZE];
    assert_eq!(resolve(&security(), "5", Some(&one_line), Some(&one_line)).unwrap().uid, 5);
    let many: String = (1..=70_000).map(|gid| format!("g:x:{gid}:app\n")).collect();
    let got = resolve(&security(), "app", Some(PASSWD), Some(many.as_bytes()));
    assert!(matches!(got, Err(UserError::TooManyGroups { .. })), "{got:?}");
}

proptest! {
    #[test]
    fn a_parsed_number_is_the_text_it_came_from(text in "\\PC{0,12}|[0-9]{1,12}|[0-9:+xe-]{1,12}") {
        if let Ok(ImageUser { user: Some(Ref::Id(uid)), .. }) = parse(&text) {
            prop_assert_eq!(uid.to_string(), text.split(':').next().unwrap());
            prop_assert!(uid <= MAX_ID);
        }
    }

    #[test]
    fn any_bytes_are_survived(passwd in proptest::collection::vec(any::<u8>(), 0..400), user in "\\PC{0,8}") {
        if let Ok(got) = resolve(&security(), &user, Some(&passwd), Some(&passwd)) {
            prop_assert!(got.groups.contains(&got.gid) && got.uid <= MAX_ID && got.gid <= MAX_ID);
        }
    }
}
