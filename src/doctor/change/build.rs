//! From what the checks say to a question for the solver, and from its answer back to nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Change, Choice, Excluded, Hindrance, Shape, cost, solve};
use crate::{
    doctor::{CheckResult, Report, Rule, Subject, Verdict, rules},
    facts::{NodeFacts, NodeName, Snapshot},
};

/// GPUs of a node that ranks may take.
pub(super) fn gpus(node: &NodeFacts) -> usize {
    let visible = rules::visible::indices(node).len();
    let offered = node.offered_gpus.and_then(|offered| usize::try_from(offered).ok());
    offered.map_or(visible, |offered| visible.min(offered))
}

/// What a check holds against nodes.
struct Trouble {
    rule: &'static Rule,
    unknown: bool,
    /// What is wrong, by node.
    what: BTreeMap<usize, String>,
    /// What to do, as the first problem says it.
    fix: String,
}

/// The fleet as one shape sees it.
pub(super) struct Question<'s> {
    names: Vec<&'s NodeName>,
    gpus: Vec<usize>,
    on_cpus: bool,
    troubles: Vec<Trouble>,
    instance: solve::Instance,
    remaining: BTreeSet<&'static str>,
}

impl<'s> Question<'s> {
    pub(super) fn new(
        snapshot: &'s Snapshot,
        report: &Report,
        allowed: &BTreeSet<String>,
        per_node: u32,
        on_cpus: bool,
    ) -> Self {
        let names: Vec<&NodeName> = snapshot.nodes.keys().chain(snapshot.missing()).collect();
        let gpus: Vec<usize> = snapshot.nodes.values().map(gpus).collect();
        let share = usize::try_from(per_node).unwrap_or(usize::MAX);
        // A node without facts cannot be counted on.
        let counts = |i: usize| gpus.get(i).is_some_and(|gpus| on_cpus || share <= *gpus);
        let node = |i| solve::Node { counts: counts(i), faults: BTreeSet::new() };
        let nodes = (0..names.len()).map(node).collect();
        let instance = solve::Instance { nodes, exclude: cost::EXCLUDE, ..Default::default() };
        let (troubles, remaining) = (Vec::new(), BTreeSet::new());
        let mut question = Question { names, gpus, on_cpus, troubles, instance, remaining };
        let index: BTreeMap<&NodeName, usize> =
            question.names.iter().enumerate().map(|(i, name)| (*name, i)).collect();
        for result in &report.results {
            question.add(result, &index, allowed);
        }
        question
    }

    fn add(
        &mut self,
        result: &CheckResult,
        index: &BTreeMap<&NodeName, usize>,
        allowed: &BTreeSet<String>,
    ) {
        let fails = result.verdict == Verdict::Fail;
        let unknown = result.is_needed_unknown() && !allowed.contains(result.rule.id);
        if !fails && !unknown {
            return;
        }
        match &result.subject {
            Subject::Node(name) => {
                let Some(&node) = index.get(name) else { return };
                let fault = self.trouble(result, unknown, node);
                self.instance.nodes[node].faults.insert(fault);
            }
            Subject::All if result.rule.id == "node-missing" => {
                for node in self.gpus.len()..self.names.len() {
                    let fault = self.trouble(result, unknown, node);
                    self.instance.nodes[node].faults.insert(fault);
                }
            }
            Subject::All if !result.conflicts.is_empty() => self.conflicts(result, index),
            Subject::All | Subject::Job => {
                self.remaining.insert(result.rule.id);
            }
        }
    }

    fn conflicts(&mut self, result: &CheckResult, index: &BTreeMap<&NodeName, usize>) {
        for conflict in &result.conflicts {
            let mut groups = Vec::new();
            let mut fault = None;
            for side in &conflict.sides {
                let nodes: Vec<usize> =
                    side.nodes.iter().filter_map(|name| index.get(name).copied()).collect();
                for &node in &nodes {
                    let at = self.trouble(result, false, node);
                    if !side.value.is_empty() {
                        self.troubles[at].what.insert(node, side.value.clone());
                    }
                    fault = Some(at);
                }
                groups.push(nodes);
            }
            if let Some(fault) = fault {
                self.instance.conflicts.push(solve::Conflict { fault, groups });
            }
        }
    }

    /// The fault of a check, with what it says about a node.
    fn trouble(&mut self, result: &CheckResult, unknown: bool, node: usize) -> usize {
        let same =
            |trouble: &Trouble| trouble.rule.id == result.rule.id && trouble.unknown == unknown;
        let at = self.troubles.iter().position(same).unwrap_or_else(|| {
            let repair = if unknown { Some(cost::FIND_OUT) } else { cost::of(result.rule.id) };
            self.instance.faults.push(solve::Fault { repair });
            let fix = result.problems.first().map_or(result.rule.fix, |problem| &problem.fix);
            let (what, fix) = (BTreeMap::new(), fix.to_owned());
            self.troubles.push(Trouble { rule: result.rule, unknown, what, fix });
            self.troubles.len() - 1
        });
        let what = match (result.problems.first(), result.unknown.first()) {
            (Some(problem), _) if !unknown => problem.what.clone(),
            (_, Some(unread)) => format!("not known: {unread}"),
            (_, None) => result.rule.summary.to_owned(),
        };
        self.troubles[at].what.insert(node, what);
        at
    }

    /// The largest number of nodes that can be left with their share.
    pub(super) fn most(&self) -> u32 {
        u32::try_from(solve::most(&self.instance)).unwrap_or(u32::MAX)
    }

    pub(super) fn is_most_exact(&self) -> bool {
        solve::is_most_exact(&self.instance)
    }

    pub(super) fn change(&self, shape: Shape) -> Option<Change> {
        let need = usize::try_from(shape.nodes).ok()?;
        let answer = solve::solve(&solve::Instance { need, ..self.instance.clone() })?;
        Some(Change {
            shape,
            cost: answer.cost,
            bound: answer.bound,
            options: answer.choices.iter().map(|choice| self.choice(choice)).collect(),
            more: answer.more,
            remaining: self.remaining.iter().copied().collect(),
        })
    }

    fn choice(&self, choice: &solve::Choice) -> Choice {
        let mut actions = Vec::new();
        if !choice.excluded.is_empty() {
            let out = choice.excluded.iter().map(|node| self.excluded(*node));
            actions.push(Action::Exclude(out.collect()));
        }
        actions.extend(choice.repaired.iter().map(|(fault, nodes)| self.repair(*fault, nodes)));
        let left = |i: &usize| !choice.excluded.contains(i);
        let nodes: Vec<usize> = (0..self.names.len()).filter(left).collect();
        let gpus = nodes.iter().filter_map(|i| self.gpus.get(*i)).sum();
        Choice { actions, nodes_left: nodes.len(), gpus_left: (!self.on_cpus).then_some(gpus) }
    }

    /// Why a node is left out: what it has by itself before what sets it against others.
    fn excluded(&self, node: usize) -> Excluded {
        let own = &self.instance.nodes[node].faults;
        let of_node = self.troubles.iter().enumerate();
        let mut of_node: Vec<(bool, &Trouble)> = of_node
            .filter(|(_at, trouble)| trouble.what.contains_key(&node))
            .map(|(at, trouble)| (!own.contains(&at), trouble))
            .collect();
        of_node.sort_by_key(|(shared, _trouble)| *shared);
        let why = of_node.first().and_then(|(_shared, trouble)| trouble.what.get(&node));
        Excluded {
            node: self.names[node].clone(),
            rules: of_node.iter().map(|(_shared, trouble)| trouble.rule.id).collect(),
            why: why.cloned().unwrap_or_default(),
        }
    }

    fn repair(&self, fault: usize, nodes: &BTreeSet<usize>) -> Action {
        let trouble = &self.troubles[fault];
        let first = nodes.iter().find_map(|node| trouble.what.get(node));
        Action::Repair {
            rule: trouble.rule.id,
            nodes: nodes.iter().map(|node| self.names[*node].clone()).collect(),
            what: first.cloned().unwrap_or_default(),
            fix: trouble.fix.clone(),
            unknown: trouble.unknown,
        }
    }

    /// Checks that nothing repairs, with their nodes, the most frequent first.
    pub(super) fn hindrances(&self) -> Vec<Hindrance> {
        let lasting = self.troubles.iter().zip(&self.instance.faults);
        let lasting = lasting.filter(|(_trouble, fault)| fault.repair.is_none());
        let mut found: Vec<Hindrance> = lasting
            .map(|(trouble, _fault)| Hindrance {
                rule: trouble.rule.id,
                nodes: trouble.what.keys().map(|node| self.names[*node].clone()).collect(),
                what: trouble.what.values().next().cloned().unwrap_or_default(),
                fix: trouble.fix.clone(),
            })
            .collect();
        found.sort_by_key(|hindrance| std::cmp::Reverse(hindrance.nodes.len()));
        found
    }
}
