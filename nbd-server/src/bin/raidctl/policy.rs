//! Who may use which export, and how much: the sections `[limits]` and `[export.NAME]` of the configuration file.

use crate::allow::Names;
use crate::failure::{Context, Failure, Outcome};
use crate::size::Size;
use nbd_server::access::Access;
use nbd_server::limits::MAX_DESCRIPTION_BYTES;
use nbd_server::reactor::{ClientLimits, ReactorConfig};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// `[limits]` as it is written. What is not there is as the server has it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    connections: Option<usize>,
    connections_per_client: Option<usize>,
    requests_per_client: Option<u32>,
    bytes_per_client: Option<String>,
    handshake_timeout: Option<String>,
    idle_timeout: Option<String>,
    stall_timeout: Option<String>,
    dead_peer_timeout: Option<String>,
}

/// `[export.NAME]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSection {
    description: String,
    read_only: bool,
    allow: Option<Vec<String>>,
}

/// Who may use what, and how much of it. The default is everybody, and the server's own limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    limits: Limits,
    exports: BTreeMap<String, ExportPolicy>,
    /// Nobody writes anything.
    all_read_only: bool,
    /// What the command line makes read-only, by name.
    read_only: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Limits {
    connections: usize,
    stall_timeout: Duration,
    clients: ClientLimits,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ExportPolicy {
    description: String,
    access: Access,
}

impl Policy {
    /// Understands the sections. `read_only` are exports that the command line makes so; an empty name is all.
    pub fn new(
        limits: &LimitsSection,
        exports: &BTreeMap<String, ExportSection>,
        read_only: &[String],
        names: &Names,
    ) -> Outcome<Policy> {
        let mut policy = Policy { limits: Limits::new(limits)?, ..Policy::default() };
        for (name, section) in exports {
            let understood = ExportPolicy::new(section, names).context(format!("export.{name}"))?;
            policy.exports.insert(name.clone(), understood);
        }
        for name in read_only {
            match name.as_str() {
                "" => policy.all_read_only = true,
                name => {
                    policy.read_only.push(name.to_string());
                    let export = policy.exports.entry(name.to_string()).or_default();
                    export.access = std::mem::take(&mut export.access).read_only();
                }
            }
        }
        policy.reactor().check().map_err(|error| Failure::new(format!("limits: {error}")))?;
        Ok(policy)
    }

    /// The reactor that keeps to the limits.
    pub fn reactor(&self) -> ReactorConfig {
        let Limits { connections, stall_timeout, clients } = self.limits;
        ReactorConfig { max_connections: connections, stall_timeout, clients, ..ReactorConfig::server() }
    }

    /// Who may use the export of this name.
    pub fn access_of(&self, name: &str) -> Access {
        let access = self.exports.get(name).map(|export| export.access.clone()).unwrap_or_default();
        if self.all_read_only { access.read_only() } else { access }
    }

    /// What clients are told about the export of this name.
    pub fn description_of(&self, name: &str) -> &str {
        self.exports.get(name).map_or("", |export| &export.description)
    }

    /// An export that the command line makes read-only and that is not among `there`: what was meant would be writable.
    pub fn unprotected(&self, there: &[String]) -> Option<&str> {
        self.read_only.iter().find(|name| !there.contains(name)).map(String::as_str)
    }

    /// Names that are spoken of and not among `there`: misspelt, most often.
    pub fn names_beside(&self, there: &[String]) -> Vec<&str> {
        self.exports.keys().filter(|name| !there.contains(name)).map(String::as_str).collect()
    }
}

impl Limits {
    fn new(section: &LimitsSection) -> Outcome<Limits> {
        let mut limits = Limits::default();
        let clients = &mut limits.clients;
        limits.connections = section.connections.unwrap_or(limits.connections);
        clients.connections = section.connections_per_client.unwrap_or(clients.connections);
        clients.requests = section.requests_per_client.unwrap_or(clients.requests);
        if let Some(text) = &section.bytes_per_client {
            clients.bytes = text.parse::<Size>().context("limits.bytes_per_client")?.0;
        }
        let times = [
            ("handshake_timeout", &section.handshake_timeout, &mut clients.handshake_timeout),
            ("stall_timeout", &section.stall_timeout, &mut limits.stall_timeout),
            ("dead_peer_timeout", &section.dead_peer_timeout, &mut clients.dead_peer_timeout),
        ];
        for (key, text, time) in times {
            if let Some(text) = text {
                *time = duration(key, text)?;
            }
        }
        if let Some(text) = &section.idle_timeout {
            clients.idle_timeout = Some(duration("idle_timeout", text)?);
        }
        Ok(limits)
    }
}

impl Default for Limits {
    fn default() -> Limits {
        let ReactorConfig { max_connections, stall_timeout, clients, .. } = ReactorConfig::server();
        Limits { connections: max_connections, stall_timeout, clients }
    }
}

impl ExportPolicy {
    fn new(section: &ExportSection, names: &Names) -> Outcome<ExportPolicy> {
        if section.description.len() > MAX_DESCRIPTION_BYTES {
            return Err(Failure::new(format!(
                "the description is longer than {MAX_DESCRIPTION_BYTES} bytes: shorten it"
            )));
        }
        let access = match &section.allow {
            None => Access::everybody(),
            Some(allow) => {
                let rules = allow.iter().map(|text| names.rules(text)).collect::<Outcome<Vec<_>>>()?;
                Access::only(rules.concat()).map_err(Failure::new)?
            }
        };
        let access = if section.read_only { access.read_only() } else { access };
        Ok(ExportPolicy { description: section.description.clone(), access })
    }
}

fn duration(key: &str, text: &str) -> Outcome<Duration> {
    humantime::parse_duration(text).map_err(|error| {
        Failure::new(format!(
            "limits.{key}: {text:?} is not a time ({error}): write it as 500ms, 30s, 5m or 1h 30m"
        ))
    })
}
