package api

import (
	"strconv"
	"time"

	"go.uber.org/zap"
)

// Connections is what is open on the data plane. Safe for concurrent use.
type Connections interface {
	// Connections lists what is open of one team's sandboxes or AllTeams, oldest first. What
	// is not identified yet is AllTeams' alone.
	Connections(team string) []Connection
	// CloseConnection ends one of them; false when team has none of that id.
	CloseConnection(team string, id uint64) bool
}

// Connection is one open connection of a sandbox.
type Connection struct {
	ID          string     `json:"id"`
	Sandbox     string     `json:"sandbox,omitempty"` // absent: not identified yet
	Team        string     `json:"team,omitempty"`
	Way         string     `json:"way"` // connect, absolute, socks5, redirect or tproxy
	Client      string     `json:"client,omitempty"`
	Destination string     `json:"destination,omitempty"`
	Protocol    string     `json:"protocol,omitempty"`
	Rule        string     `json:"rule,omitempty"`
	Source      string     `json:"source,omitempty"`
	Version     uint64     `json:"version,omitempty"`
	Since       time.Time  `json:"since"`
	Exchanges   []Exchange `json:"exchanges"`
}

// Exchange is one request that is under way on a connection.
type Exchange struct {
	RequestID   string    `json:"requestId"`
	Destination string    `json:"destination"`
	Method      string    `json:"method,omitempty"`
	Rule        string    `json:"rule,omitempty"`
	Source      string    `json:"source,omitempty"`
	Version     uint64    `json:"version,omitempty"`
	Since       time.Time `json:"since"`
}

func connectionParams() []param {
	return []param{
		{name: "sandbox", about: "its id"},
		{name: "source", about: "what uses this source, on the connection or in an exchange"},
		{name: "protocol", about: "as the list names it"},
	}
}

func (s *Server) listConnections(c *call) (answer, *failure) {
	out := []Connection{}
	if s.opt.Connections == nil {
		return answer{data: out}, nil
	}
	for _, one := range s.opt.Connections.Connections(c.who.Team) {
		if one.matches(c.query.Get("sandbox"), c.query.Get("source"), c.query.Get("protocol")) {
			one.Exchanges = nonNil(one.Exchanges)
			out = append(out, one)
		}
	}
	return answer{data: out}, nil
}

// matches: an empty filter matches all.
func (c *Connection) matches(sandbox, source, protocol string) bool {
	if sandbox != "" && c.Sandbox != sandbox || protocol != "" && c.Protocol != protocol {
		return false
	}
	if source == "" || c.Source == source {
		return true
	}
	for _, x := range c.Exchanges {
		if x.Source == source {
			return true
		}
	}
	return false
}

func (s *Server) closeConnection(c *call) (answer, *failure) {
	id, err := strconv.ParseUint(c.name, 10, 64)
	if err != nil || s.opt.Connections == nil || !s.opt.Connections.CloseConnection(c.who.Team, id) {
		return answer{}, failNotFound("connection")
	}
	s.opt.Log.Info("connection closed", zap.String("request_id", c.id), zap.String("actor", c.who.Name), zap.String("connection", c.name))
	return answer{data: Deletion{Deleted: true, Message: "connection closed"}}, nil
}
