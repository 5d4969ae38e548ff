//! `ssh` and `sshTests`.

use jsonc_parser::ast::Value;

use super::{Reader, place};
use crate::policy::document::{CheckPeriod, SshRule, SshTest};
use crate::policy::duration;
use crate::policy::error::{Fault, Span};
use crate::policy::selector::{Autogroup, Selector, Shape, shape};
use crate::policy::syntax::{self, Text};

/// The longest time that a renewed login may count: a week.
const LONGEST_CHECK: i64 = 168 * 3600;

impl Reader {
    pub(super) fn ssh_rule(&self, value: &Value<'_>) -> Result<SshRule, Fault> {
        const FIELDS: &[&str] = &["action", "src", "dst", "users", "checkPeriod", "acceptEnv"];
        let at = place(value);
        let (mut action, mut period, mut users, mut accept_env) = (None, None, Vec::new(), Vec::new());
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        for (field, value) in syntax::fields("an SSH rule", FIELDS, value)? {
            match field {
                "action" => action = Some(is_check(&syntax::string("action", value)?)?),
                "src" => sources = syntax::strings("src", value)?,
                "dst" => targets = syntax::strings("dst", value)?,
                "users" => users = syntax::strings("users", value)?,
                "checkPeriod" => period = check_period(value)?,
                _ => accept_env = environment(value)?,
            }
        }
        let is_check = action.ok_or_else(|| Fault::new(at, "action must be specified"))?;
        if let (false, Some((at, _))) = (is_check, period) {
            return Err(Fault::new(at, "checkPeriod is only valid with action \"check\""));
        }
        check_accounts(at, &users)?;
        let sources: Vec<_> = sources.iter().map(|text| self.ssh_source(text)).collect::<Result<_, _>>()?;
        let mut checked = Vec::new();
        for text in &targets {
            let target = self.ssh_target(text)?;
            check_pair(text, &target, &sources)?;
            checked.push(target);
        }
        let check = is_check.then(|| period.map_or(CheckPeriod::DEFAULT, |(_, period)| period));
        Ok(SshRule { sources, targets: checked, check, users, accept_env })
    }

    fn ssh_source(&self, text: &Text) -> Result<Selector, Fault> {
        match self.selector(text).map_err(|message| text.fault(message))? {
            selector @ (Selector::User(_) | Selector::Domain(_) | Selector::Group(_) | Selector::Tag(_)) => {
                Ok(selector)
            }
            Selector::Auto(group) if group.is_identity() => Ok(Selector::Auto(group)),
            Selector::Any | Selector::Net(_) | Selector::Set(_) | Selector::Auto(_) => {
                Err(text.fault(format!("invalid src {:?}", text.value)))
            }
        }
    }

    fn ssh_target(&self, text: &Text) -> Result<Selector, Fault> {
        if matches!(shape(&text.value), Shape::Host(_)) {
            return Err(text.fault(format!("invalid dst {:?}", text.value)));
        }
        match self.selector(text).map_err(|message| text.fault(message))? {
            selector @ (Selector::User(_) | Selector::Tag(_)) => Ok(selector),
            Selector::Auto(group) if group.is_identity() || group == Autogroup::SelfNodes => Ok(Selector::Auto(group)),
            Selector::Any
            | Selector::Net(_)
            | Selector::Set(_)
            | Selector::Domain(_)
            | Selector::Group(_)
            | Selector::Auto(_) => Err(text.fault(format!("invalid dst {:?}", text.value))),
        }
    }

    pub(super) fn ssh_test(&self, value: &Value<'_>) -> Result<SshTest, Fault> {
        const FIELDS: &[&str] = &["src", "dst", "accept", "check", "deny"];
        let at = place(value);
        let (mut source, mut targets) = (None, Vec::new());
        let (mut accept, mut check, mut deny) = (Vec::new(), Vec::new(), Vec::new());
        for (field, value) in syntax::fields("an SSH test", FIELDS, value)? {
            match field {
                "src" => source = Some(super::tests::trimmed("src", value)?).filter(|text| !text.value.is_empty()),
                "dst" => targets = syntax::strings("dst", value)?,
                "accept" => accept = accounts("accept", value)?,
                "check" => check = accounts("check", value)?,
                _ => deny = accounts("deny", value)?,
            }
        }
        let source = source.ok_or_else(|| Fault::new(at, "SSH tests entry must have a non-empty src"))?;
        if targets.is_empty() {
            return Err(Fault::new(at, "SSH tests entry must have at least one dst"));
        }
        for text in &targets {
            self.check_test_target(text)?;
        }
        let targets = targets.into_iter().map(|text| self.named(text)).collect();
        Ok(SshTest { at, source: self.named(source), targets, accept, check, deny })
    }

    /// A destination of a test is a place one can log in to: not a network, not the internet.
    fn check_test_target(&self, text: &Text) -> Result<(), Fault> {
        let disallowed = || Err(text.fault(format!("SSH tests dst contains disallowed element {:?}", text.value)));
        match shape(&text.value) {
            Shape::Known(Selector::Tag(name)) if !self.policy.tag_owners.contains_key(&name) => {
                Err(text.fault(format!("SSH tests dst contains unknown tag {:?}", text.value)))
            }
            Shape::Known(Selector::Auto(Autogroup::Internet | Autogroup::DangerAll) | Selector::Any) => disallowed(),
            Shape::Known(Selector::Net(_)) if text.value.contains('/') => disallowed(),
            Shape::Host(name) => match self.policy.hosts.get(&name) {
                Some(net) if net.prefix_len() < net.max_prefix_len() => disallowed(),
                _ => Ok(()),
            },
            Shape::Other | Shape::UnknownAutogroup => disallowed(),
            Shape::Known(_) | Shape::Set(_) => Ok(()),
        }
    }
}

fn accounts(what: &str, value: &Value<'_>) -> Result<Vec<String>, Fault> {
    Ok(syntax::strings(what, value)?.into_iter().map(|text| text.value).collect())
}

fn is_check(action: &Text) -> Result<bool, Fault> {
    match action.value.trim() {
        "accept" => Ok(false),
        "check" => Ok(true),
        "" => Err(action.fault("action must be specified")),
        other => Err(action.fault(format!("{other:?} is not a valid action"))),
    }
}

fn check_period(value: &Value<'_>) -> Result<Option<(Span, CheckPeriod)>, Fault> {
    if matches!(value, Value::NullKeyword(_)) {
        return Ok(None);
    }
    let text = syntax::string("checkPeriod", value)?;
    if text.value == "always" {
        return Ok(Some((text.at, CheckPeriod::Always)));
    }
    let seconds = duration::parse(&text.value).map_err(|message| text.fault(message))?;
    let shown = duration::Shown(seconds);
    match u64::try_from(seconds) {
        Err(_) => Err(text.fault(format!("checkPeriod {shown} must be a positive duration"))),
        Ok(_) if seconds > LONGEST_CHECK => Err(text.fault(format!("checkPeriod {shown} is above the max (168h)"))),
        Ok(seconds) => Ok(Some((text.at, CheckPeriod::Seconds(seconds)))),
    }
}

fn environment(value: &Value<'_>) -> Result<Vec<String>, Fault> {
    let mut names = Vec::new();
    for text in syntax::strings("acceptEnv", value)? {
        if text.value.is_empty() {
            return Err(text.fault("acceptEnv values cannot be empty"));
        }
        names.push(text.value);
    }
    Ok(names)
}

fn check_accounts(at: Span, users: &[Text]) -> Result<(), Fault> {
    if users.is_empty() {
        return Err(Fault::new(at, "users must be specified"));
    }
    match users.iter().find(|user| matches!(user.value.as_str(), "" | "*")) {
        Some(user) => Err(user.fault(format!("user {:?} is not valid", user.value))),
        None => Ok(()),
    }
}

/// Nobody reaches a user's own nodes over SSH but that user.
fn check_pair(text: &Text, target: &Selector, sources: &[Selector]) -> Result<(), Fault> {
    let tagged = |source: &Selector| matches!(source, Selector::Tag(_) | Selector::Auto(Autogroup::Tagged));
    match target {
        Selector::User(_) if sources.iter().any(|source| source != target) => Err(text.fault(format!(
            "dst {:?} can be reached only by that user: let src name the same user, or use autogroup:self",
            text.value
        ))),
        Selector::Auto(group) if *group != Autogroup::Tagged && sources.iter().any(tagged) => {
            Err(text.fault(format!("tagged nodes in src cannot reach {}", group.name())))
        }
        Selector::Any
        | Selector::Net(_)
        | Selector::Set(_)
        | Selector::User(_)
        | Selector::Domain(_)
        | Selector::Group(_)
        | Selector::Tag(_)
        | Selector::Auto(_) => Ok(()),
    }
}
