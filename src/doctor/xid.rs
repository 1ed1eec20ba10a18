//! Errors of the NVIDIA driver (XIDs): what NVIDIA and four monitoring tools make of each code, and where they
//! contradict each other.

/// What to do about an XID that was seen since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XidAction {
    /// Block.
    Block,
    /// Block unless the sub-code says that it is not fatal.
    BlockUnlessDecoded,
    /// The message names the action.
    FollowAction,
    /// Warn.
    Warn,
    /// Warn if a row of memory waits for its replacement.
    WarnIfRemapPending,
    /// Nothing when it follows another XID, else a warning.
    InfoIfSympathetic,
    /// Nothing, but a warning when three processes were hit.
    InfoWarnIfThreeProcesses,
    /// Nothing.
    Info,
    /// The catalog does not use the code.
    WarnUnused,
}

/// One line of `xid.tsv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XidLine {
    /// Code.
    pub xid: u32,
    /// NVIDIA's name for it.
    pub mnemonic: &'static str,
    /// Short meaning.
    pub description: &'static str,
    /// What NVIDIA's catalog says to do at once, `-` if nothing.
    pub nvidia_action: &'static str,
    /// What it says to do then.
    pub nvidia_investigate: &'static str,
    policies: [&'static str; 4],
    /// What `xid-seen` does.
    pub action: XidAction,
}

/// XIDs with NVIDIA's action and four other policies, so that a reader sees who says what.
/// Columns and sources are explained in `docs/xid.md`.
const TABLE: &str = include_str!("data/xid.tsv");

/// The table's line for a code; `None` if the table does not have it.
pub fn find(code: u32) -> Option<XidLine> {
    all().find(|line| line.xid == code)
}

/// All codes, in order.
pub fn all() -> impl Iterator<Item = XidLine> {
    TABLE.lines().skip(1).filter_map(line)
}

fn line(line: &'static str) -> Option<XidLine> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [xid, mnemonic, description, nvidia_action, nvidia_investigate, p0, p1, p2, p3, action] =
        *columns.as_slice()
    else {
        return None;
    };
    let action = match action {
        "BLOCK" => XidAction::Block,
        "BLOCK_UNLESS_DECODED_NONFATAL" => XidAction::BlockUnlessDecoded,
        "FOLLOW_ACTION" => XidAction::FollowAction,
        "WARN" => XidAction::Warn,
        "WARN_IF_REMAP_PENDING" => XidAction::WarnIfRemapPending,
        "INFO_IF_SYMPATHETIC_ELSE_WARN" => XidAction::InfoIfSympathetic,
        "INFO_WARN_IF_3_PIDS" => XidAction::InfoWarnIfThreeProcesses,
        "INFO" => XidAction::Info,
        "WARN_UNUSED_CODE" => XidAction::WarnUnused,
        _ => return None,
    };
    let policies = [p0, p1, p2, p3];
    let xid = xid.parse().ok()?;
    Some(XidLine {
        xid,
        mnemonic,
        description,
        nvidia_action,
        nvidia_investigate,
        policies,
        action,
    })
}

/// What should happen to a node that reported a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stance {
    /// Nothing.
    Ignore,
    /// Somebody should know: the program is at fault, or the GPU may be.
    Watch,
    /// No job should start there.
    Stop,
}

impl Stance {
    /// Text for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Stance::Ignore => "ignore",
            Stance::Watch => "watch",
            Stance::Stop => "stop",
        }
    }
}

/// What one source says about a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// Who.
    pub who: &'static str,
    /// In its own word.
    pub word: &'static str,
    /// What that comes to.
    pub stance: Stance,
}

impl XidLine {
    /// What each source says that has an opinion.
    pub fn opinions(&self) -> Vec<Opinion> {
        const TOOLS: [&str; 4] = ["gpud", "Azure NHC", "gcm", "k8s-device-plugin"];
        let nvidia = Some(("NVIDIA", self.nvidia_action));
        let tools = TOOLS.into_iter().zip(self.policies);
        let known = nvidia.into_iter().chain(tools).filter(|(_who, word)| *word != "-");
        known.map(|(who, word)| Opinion { who, word, stance: stance(word) }).collect()
    }

    /// What most sources say; the stricter, if as many say something milder.
    pub fn majority(&self) -> Option<Stance> {
        let opinions = self.opinions();
        let votes = |stance: Stance| opinions.iter().filter(|o| o.stance == stance).count();
        let all = [Stance::Ignore, Stance::Watch, Stance::Stop];
        all.into_iter().filter(|stance| 0 < votes(*stance)).max_by_key(|stance| votes(*stance))
    }

    /// Who says the same as `verdict` and who does not, for a reader.
    pub fn dissent(&self, verdict: Stance) -> String {
        let opinions = self.opinions();
        let (with, against): (Vec<&Opinion>, Vec<&Opinion>) =
            opinions.iter().partition(|opinion| opinion.stance == verdict);
        let list = |some: &[&Opinion], of: &dyn Fn(&Opinion) -> String| {
            some.iter().map(|opinion| of(opinion)).collect::<Vec<_>>().join(", ")
        };
        let agree = list(&with, &|o| format!("{} ({})", o.who, o.word));
        let differ = list(&against, &|o| format!("{} ({}: {})", o.who, o.word, o.stance.name()));
        match (agree.is_empty(), differ.is_empty()) {
            (true, true) => "no other source judges this code".to_owned(),
            (false, true) => format!("so say all: {agree}"),
            (true, false) => format!("others differ: {differ}"),
            (false, false) => format!("so say {agree}; others differ: {differ}"),
        }
    }
}

/// Words of NVIDIA's catalog and of the tools. An action that is more than a restart of the program is
/// taken on the machine, so no job should run there meanwhile.
fn stance(word: &str) -> Stance {
    match word {
        "IGNORE" | "Info" | "ignored" => Stance::Ignore,
        "RESTART_APP" | "Warning" | "warn" => Stance::Watch,
        _ => Stance::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        let lines: Vec<_> = all().collect();
        assert_eq!(lines.len(), 172);
        assert_eq!(TABLE.lines().count(), 173);
        assert!(lines.iter().zip(1..).all(|(line, code)| line.xid == code));
        let blocking = lines.iter().filter(|line| line.action == XidAction::Block).count();
        assert_eq!(blocking, 26);
    }

    /// Codes in use where one source lets a job start that another stops.
    #[test]
    fn sources_contradict_each_other_and_the_table_shows_it() {
        let opposed = |line: &XidLine| {
            let stances: Vec<Stance> = line.opinions().iter().map(|o| o.stance).collect();
            stances.contains(&Stance::Ignore) && stances.contains(&Stance::Stop)
        };
        let codes: Vec<u32> = all().filter(opposed).map(|line| line.xid).collect();
        assert_eq!(codes.len(), 26);
        for code in [38, 44, 63, 68, 92, 109, 121] {
            assert!(codes.contains(&code), "{code} in {codes:?}");
        }
        let line = find(109).unwrap();
        assert_eq!(line.majority(), Some(Stance::Watch));
        assert_eq!(
            line.dissent(Stance::Stop),
            "so say NVIDIA (RESET_GPU); others differ: gpud (Warning: watch), gcm (warn: watch), \
             k8s-device-plugin (ignored: ignore)"
        );
        assert_eq!(find(79).unwrap().dissent(Stance::Stop).split(':').next(), Some("so say all"));
    }
}
