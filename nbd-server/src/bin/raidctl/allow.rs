//! The rules of an export as administrators write them, with names of users and groups.
//!
//! Names are looked up in /etc/passwd and /etc/group when the configuration is read. The server knows the effective
//! user and group of a client and not its supplementary groups; so a group stands for everybody whom these files put
//! into it, too.

use crate::failure::{Context, Failure, Outcome};
use nbd_server::access::{Rights, Rule, Who};

/// Users and groups of this machine.
pub struct Names {
    passwd: String,
    group: String,
}

impl Names {
    /// As they are in /etc now. A machine without these files knows no names.
    pub fn read() -> Names {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        Names { passwd: text("/etc/passwd"), group: text("/etc/group") }
    }

    /// The rules that `text` stands for: one, or one for each way to be in a group.
    pub fn rules(&self, text: &str) -> Outcome<Vec<Rule>> {
        let (who, suffix) = match text.strip_suffix(":ro").or_else(|| text.strip_suffix(":rw")) {
            Some(who) => (who, &text[who.len()..]),
            None => (text, ""),
        };
        let rule = |who: String| format!("{who}{suffix}").parse::<Rule>().context(format!("allow {text:?}"));
        match who.split_once('=') {
            Some(("unix:user", name)) => {
                let uid = self.uid(name).ok_or_else(|| unknown(text, "user", name, "/etc/passwd"))?;
                Ok(vec![rule(format!("unix:user={uid}"))?])
            }
            Some(("unix:group", name)) => {
                let gid = self.gid(name).ok_or_else(|| unknown(text, "group", name, "/etc/group"))?;
                let first = rule(format!("unix:group={gid}"))?;
                let Rule { rights, .. } = first;
                Ok(std::iter::once(first).chain(self.members(gid, rights)).collect())
            }
            _ => Ok(vec![rule(who.to_string())?]),
        }
    }

    fn uid(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| number_of(&self.passwd, name))
    }

    fn gid(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| number_of(&self.group, name))
    }

    fn members(&self, gid: u32, rights: Rights) -> Vec<Rule> {
        let of_group = entries(&self.group).filter(|entry| entry.get(2) == Some(&gid.to_string().as_str()));
        let listed = of_group.filter_map(|entry| entry.get(3).copied()).flat_map(|names| names.split(','));
        let mut uids: Vec<u32> = listed.filter_map(|name| number_of(&self.passwd, name)).collect();
        let of_user = entries(&self.passwd).filter(|entry| entry.get(3) == Some(&gid.to_string().as_str()));
        uids.extend(of_user.filter_map(|entry| entry[2].parse::<u32>().ok()));
        uids.sort_unstable();
        uids.dedup();
        uids.into_iter().map(|uid| Rule { who: Who::UnixUser(uid), rights }).collect()
    }
}

fn unknown(text: &str, kind: &str, name: &str, file: &str) -> Failure {
    Failure::new(format!(
        "allow {text:?}: there is no {kind} {name:?} in {file}: say its number if it comes from elsewhere"
    ))
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|entry| entry.len() >= 3)
}

/// The number of a name; it stands third in both files.
fn number_of(text: &str, name: &str) -> Option<u32> {
    entries(text).find(|entry| entry[0] == name)?[2].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            passwd: "root:x:0:0::/root:/bin/sh\nbackup:x:34:34::/:/bin/sh\nann:x:1000:6::/:/bin/sh\nbad\n"
                .into(),
            group: "root:x:0:\ndisk:x:6:backup,gone\nempty:x:7:\n".into(),
        }
    }

    fn rules(text: &str) -> Vec<String> {
        let show = |rule: &Rule| format!("{:?} {:?}", rule.who, rule.rights);
        names().rules(text).unwrap().iter().map(show).collect()
    }

    #[test]
    fn a_group_is_everybody_whom_the_files_put_into_it() {
        assert_eq!(rules("unix:user=backup:ro"), ["UnixUser(34) ReadOnly"]);
        assert_eq!(rules("unix:user=4711"), ["UnixUser(4711) ReadWrite"]);
        let disk = ["UnixGroup(6) ReadOnly", "UnixUser(34) ReadOnly", "UnixUser(1000) ReadOnly"];
        assert_eq!(rules("unix:group=disk:ro"), disk);
        assert_eq!(rules("unix:group=6:ro"), disk);
        assert_eq!(rules("unix:group=empty"), ["UnixGroup(7) ReadWrite"]);
        assert_eq!(rules("::1:ro").len(), 1);
    }

    #[test]
    fn an_unknown_name_is_named() {
        for (text, what) in [("unix:user=gone", "user \"gone\""), ("unix:group=nobody", "group \"nobody\"")] {
            let error = names().rules(text).unwrap_err();
            assert!(error.sentence().unwrap().contains(what), "{error}");
        }
        let error = names().rules("10.0.0.1/8").unwrap_err();
        assert!(error.sentence().unwrap().contains("10.0.0.0/8"), "{error}");
    }
}
