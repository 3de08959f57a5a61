package rapi

// MaxPayload is the largest body of a response or error in bytes (6 MiB + 100).
const MaxPayload = 6*1024*1024 + 100

// state is where the runtime stands; the names are those that the Runtime API uses in its errors.
type state uint8

const (
	stateStarted state = iota
	stateInitError
	stateReady
	stateRunning
	stateInvocationResponse
	stateInvocationErrorResponse
	stateResponseSent
	// stateAbandoned is ours: the event was handed out but the invocation ended without an answer.
	stateAbandoned
)

var stateNames = [...]string{
	stateStarted:                 "Started",
	stateInitError:               "InitError",
	stateReady:                   "Ready",
	stateRunning:                 "Running",
	stateInvocationResponse:      "InvocationResponse",
	stateInvocationErrorResponse: "InvocationErrorResponse",
	stateResponseSent:            "RuntimeResponseSent",
	stateAbandoned:               "Abandoned",
}

// String returns the state's name as the Runtime API spells it.
func (s state) String() string { return stateNames[s] }

// moves lists the legal transitions that the runtime's requests cause. Ready to Running happens on
// Invoke; Running to Running is the same event handed out again; Running to Abandoned is ours.
var moves = [...][]state{
	stateStarted:                 {stateReady, stateInitError},
	stateInitError:               {},
	stateReady:                   {stateReady, stateRunning},
	stateRunning:                 {stateRunning, stateInvocationResponse, stateInvocationErrorResponse, stateAbandoned},
	stateInvocationResponse:      {stateResponseSent, stateAbandoned},
	stateInvocationErrorResponse: {stateResponseSent, stateAbandoned},
	stateResponseSent:            {stateReady},
	stateAbandoned:               {},
}

// may reports whether the move from s to is legal.
func (s state) may(to state) bool {
	for _, t := range moves[s] {
		if t == to {
			return true
		}
	}
	return false
}
