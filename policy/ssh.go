package policy

import (
	"bytes"
	"strings"
)

// sshPolicy limits what may be asked for inside SSH. As soon as one allowed list stands
// in it, what no list allows and no word grants is refused: subsystems beside a list of
// commands, commands beside a list of subsystems. shell is granted by default only where
// there is no list at all, forwarding never.
type sshPolicy struct {
	commands, subsystems globPolicy
	shell, forwarding    bool
	shellSaid            bool // shell stands in the rule
}

func (p *sshPolicy) limited() bool { return p.commands.limited || p.subsystems.limited }

// refuses says why q may not be, or "".
func (p *sshPolicy) refuses(q *SSHRequest, w *words) string {
	switch q.Kind {
	case SSHExec:
		return p.refusesCommand(q.Text, w)
	case SSHSubsystem:
		switch lists := &p.subsystems; {
		case lists.denies(q.Text):
			return "subsystem is denied"
		case p.limited() && !lists.allows(q.Text):
			return "subsystem is not among the allowed"
		}
		return ""
	case SSHShell:
		if !p.shell {
			return "shell is not allowed"
		}
		return ""
	case SSHForwarding:
		if !p.forwarding {
			return "forwarding is not allowed"
		}
		return ""
	}
	return "asks for nothing that could be allowed"
}

// refusesCommand: a command that a shell could read otherwise than word by word cannot
// be compared with a list.
func (p *sshPolicy) refusesCommand(line string, w *words) string {
	lists := &p.commands
	switch {
	case !lists.any() && !p.limited():
		return ""
	case w.all == 0:
		return "not a command of plain words"
	case lists.denies(line) || w.denied(lists):
		return "command is denied"
	case p.limited() && !lists.allows(line):
		return "command is not among the allowed"
	}
	return ""
}

// denied compares the words without quotes and with single spaces, and once more with
// the directory of the program left out.
func (w *words) denied(lists *globPolicy) bool {
	text := w.buf[:w.n]
	program := text[:w.ends[0]]
	base := text[bytes.LastIndexByte(program, '/')+1:]
	for _, g := range lists.denied {
		if matchGlob(g, text, true) || matchGlob(g, base, true) {
			return true
		}
	}
	return false
}

// ssh decides one thing that is asked for inside SSH: every rule of protocol ssh or git
// that covers the destination must let it be. Without a rule of protocol ssh commands,
// subsystems and shells are free and forwarding is not; a rule of protocol git lets
// nothing be but git, and what a rule of protocol ssh beside it names.
func (w *walk) ssh(d Decision) Decision {
	q := &w.flow.SSH
	var cmd words
	if q.Kind == SSHExec {
		cmd.read(q.Text)
	}
	var by sshRules
	if denied := w.sshRules(&cmd, &by); denied != nil {
		return Decision{Reason: ReasonProtocolRule, Rule: denied.label}
	}
	switch {
	case by.git != nil && !by.granted && !isGitCommand(q, &cmd):
		w.tr.rule("protocol", by.git, true, "only git commands, and what a rule of protocol ssh names")
		return Decision{Reason: ReasonProtocolRule, Rule: by.git.label}
	case q.Kind == SSHForwarding && !by.ssh, q.Kind == SSHNothing:
		w.tr.note("protocol", true, "no rule of protocol ssh allows it")
		return Decision{Reason: ReasonProtocolRule}
	}
	return d
}

// sshRules says which rules there are for what is asked for.
type sshRules struct {
	ssh     bool  // one of protocol ssh
	git     *rule // the first of protocol git
	granted bool  // one of protocol ssh names it
}

// sshRules gives the first rule that refuses, or nil.
func (w *walk) sshRules(cmd *words, by *sshRules) (denied *rule) {
	w.tr.enter("protocol")
	var c candidates
	w.search(w.net.protocolIndex, &c)
	for {
		cand, ok := c.pull(&w.t, w.tr)
		if !ok {
			return nil
		}
		r, q := w.net.protocol[cand.id], &w.flow.SSH
		var why string
		switch r.kind {
		case ruleSSH:
			why = r.ssh.refuses(q, cmd)
			by.ssh, by.granted = true, by.granted || r.ssh.grants(q)
		case ruleGit:
			why = r.git.refusesSSH(q, cmd)
			if by.git == nil {
				by.git = &r.rule
			}
		default:
			w.tr.miss(&r.rule, "is not about ssh")
			continue
		}
		if why != "" {
			w.tr.rule("protocol", &r.rule, true, why)
			return &r.rule
		}
		w.tr.rule("protocol", &r.rule, true, "lets it be")
	}
}

// grants reports what the rule names, and not only leaves alone.
func (p *sshPolicy) grants(q *SSHRequest) bool {
	switch q.Kind {
	case SSHExec:
		return p.commands.limited
	case SSHSubsystem:
		return p.subsystems.limited
	case SSHShell:
		return p.shellSaid && p.shell
	case SSHForwarding:
		return p.forwarding
	}
	return false
}

func isGitCommand(q *SSHRequest, w *words) bool {
	if q.Kind != SSHExec {
		return false
	}
	_, ok := gitOverSSH(q.Text, w)
	return ok
}

// refusesSSH judges what is git or looks like it; all else is for the caller.
func (p *gitPolicy) refusesSSH(q *SSHRequest, w *words) string {
	if q.Kind != SSHExec {
		return ""
	}
	r, ok := gitOverSSH(q.Text, w)
	if !ok {
		return ""
	}
	return p.refuses(&r)
}

// gitOverSSH reads the command that a git client sends: "git-upload-pack 'path'" or
// "git upload-pack 'path'", with one path and no options. ok is false for what has
// nothing of git in it.
func gitOverSSH(line string, w *words) (r gitRequest, ok bool) {
	for _, name := range [...]string{gitUploadPack, gitReceivePack, gitUploadArchive} {
		rest, found := strings.CutPrefix(line, name)
		if !found {
			rest, found = strings.CutPrefix(line, "git "+name[len("git-"):])
		}
		if !found || w.all == 0 {
			continue
		}
		path, plain := onePath(rest)
		return gitRequest{repo: repositoryName(path), write: name == gitReceivePack, odd: !plain}, true
	}
	for _, part := range [...]string{"upload-pack", "receive-pack", "upload-archive"} {
		if containsFoldASCII(line, part) || w.holds(part) {
			return gitRequest{odd: true}, true
		}
	}
	return r, false
}

// onePath takes " 'path'" or " path". Only paths that every server reads alike are
// plain: no "." or ".." or empty segments, no home of somebody, no option, no character
// that needs quotes.
func onePath(s string) (path string, plain bool) {
	s, ok := strings.CutPrefix(s, " ")
	if !ok {
		return "", false
	}
	if n := len(s); n >= 2 && s[0] == '\'' && s[n-1] == '\'' {
		s = s[1 : n-1]
	}
	if s == "" || s[0] == '-' || s[0] == '~' {
		return "", false
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte("-._~/@:=,+", s[i]) < 0 {
			return "", false
		}
	}
	for seg := range strings.SplitSeq(strings.Trim(s, "/"), "/") {
		if seg == "" || seg == "." || seg == ".." {
			return "", false
		}
	}
	if strings.HasPrefix(s, "//") || strings.HasPrefix(s, "/~") {
		return "", false
	}
	return strings.ReplaceAll(s, "+", "%2B"), true // as in a canonical path
}

// holds reports whether the text without quotes has part in it.
func (w *words) holds(part string) bool {
	text := w.buf[:w.n]
	for i := 0; i+len(part) <= len(text); i++ {
		j := 0
		for j < len(part) && lowerByte(text[i+j]) == part[j] {
			j++
		}
		if j == len(part) {
			return true
		}
	}
	return false
}
