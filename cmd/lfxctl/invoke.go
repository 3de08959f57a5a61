package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"lfx.dev/lfxd/daemon/api"
	"lfx.dev/lfxd/daemon/client"
	"lfx.dev/lfxd/daemon/function"
)

// invokeFlags are the flags of `lfxctl invoke`.
type invokeFlags struct {
	scope
	data, file, qualifier string
	log                   bool
	output                *outputFlag
}

func (a *app) invokeCommand() *cobra.Command {
	var flags invokeFlags
	cmd := &cobra.Command{
		Use:   "invoke NAME",
		Short: "Call a function and print its answer",
		Long: `Invoke calls a function and waits for its answer.

The event is -d, or the content of -f ("-" is standard input), else standard input when that is not a terminal, else {}.
The answer alone goes to standard output; the log and errors go to standard error. A function that fails
exits 1; what it answered, the description of its error, is printed all the same.`,
		Example: `  lfxctl invoke hello-go -d '{"name":"x"}'
  lfxctl invoke shop/staging/checkout -f event.json --log
  echo '{"name":"x"}' | lfxctl invoke hello-go --qualifier 3 | jq .`,
		Args:              args(1, 1, "the function's NAME"),
		ValidArgsFunction: a.completeNames,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return a.invoke(cmd, c, args[0], &flags)
		}),
	}
	cmd.Flags().StringVarP(&flags.data, "data", "d", "", "the event, JSON")
	cmd.Flags().StringVarP(&flags.file, "file", "f", "", "the file that holds the event; - is standard input")
	cmd.Flags().StringVar(&flags.qualifier, "qualifier", "", "a version, an alias or r<release>")
	cmd.Flags().BoolVar(&flags.log, "log", false, "show the last 4 KB of the invocation's log on standard error, and where the time of a cold start went")
	_ = cmd.RegisterFlagCompletionFunc("qualifier", a.completeQualifier(&flags.scope))
	a.addScopeFlags(cmd, &flags.scope)
	flags.output = addOutputFlag(cmd)
	return cmd
}

func (a *app) invoke(cmd *cobra.Command, c *client.Client, name string, flags *invokeFlags) error {
	payload, err := a.payload(cmd, flags)
	if err != nil {
		return err
	}
	target, err := invokeTarget(cmd.Context(), c, name, flags.scope)
	if err != nil {
		return err
	}
	result, err := c.Invoke(cmd.Context(), client.InvokeRequest{
		Name: target, Qualifier: flags.qualifier, Payload: payload, LogTail: flags.log,
	})
	if err != nil {
		return invokeFailure(err, name, target, flags.qualifier)
	}
	var cold *api.Record
	if flags.log {
		cold = coldStart(cmd.Context(), c, result.RequestID)
	}
	if *flags.output == outputJSON {
		err = a.printJSON(newInvokeOutput(result, cold))
	} else {
		err = a.printPayload(result.Payload)
	}
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	if flags.log && *flags.output != outputJSON {
		a.printLogTail(result.LogTail)
		if cold != nil {
			fmt.Fprintf(a.stderr, "cold start, %s: queue %s, %s, handler %s\n", shortDuration(cold.Total), shortDuration(cold.Queue), phases(cold.Phases), shortDuration(cold.Function))
		}
	}
	if result.FunctionError != "" {
		fmt.Fprintf(a.stderr, "lfxctl: %s\n", functionFailure(name, result))
		return &silentError{exitFailure}
	}
	return nil
}

// invokeTarget is the name that the Lambda API takes. A bare name goes as it is, since the daemon
// knows whether it is unique and what "function" means; a full key becomes a partial ARN. Only a
// half-known one, such as a name with --env alone, asks the daemon, which takes control rights.
func invokeTarget(ctx context.Context, c *client.Client, name string, s scope) (string, error) {
	if isARN(name) {
		return name, nil
	}
	key, err := parseName(name, s)
	switch {
	case err != nil:
		return "", err
	case key.Environment == function.Environment{}:
		return name, nil
	case key.Project == "" || key.Environment.Name == "":
		found, err := resolve(ctx, c, name, s)
		if err != nil {
			return "", err
		}
		key = found.Key
	}
	return function.Account(key.Environment) + ":function:" + key.Function, nil
}

// invokeFailure words an unknown function as it was named: the daemon speaks of the account that
// invokeTarget made of its environment.
func invokeFailure(err error, name, target, qualifier string) error {
	refused, ok := errors.AsType[*client.InvokeError](err)
	if !ok || name == target {
		return err
	}
	if refused.Status == http.StatusForbidden || refused.Status == http.StatusNotFound && qualifier == "" {
		return fmt.Errorf("there is no function %s: `lfxctl ls` lists them", name)
	}
	return err
}

// payload reads the event. It must be JSON: the daemon would refuse it, less precisely.
func (a *app) payload(cmd *cobra.Command, flags *invokeFlags) ([]byte, error) {
	what, data, err := a.readPayload(cmd, flags)
	if err != nil {
		return nil, err
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return []byte("{}"), nil
	}
	var any json.RawMessage
	if err := json.Unmarshal(data, &any); err != nil {
		return nil, usagef("%s is not JSON: %v", what, err)
	}
	return data, nil
}

func (a *app) readPayload(cmd *cobra.Command, flags *invokeFlags) (what string, data []byte, err error) {
	switch {
	case cmd.Flags().Changed("data") && flags.file != "":
		return "", nil, usagef("-d and -f both give the event: leave one of them out")
	case cmd.Flags().Changed("data"):
		return "the event of -d", []byte(flags.data), nil
	case flags.file != "" && flags.file != "-":
		if data, err = os.ReadFile(flags.file); err != nil {
			return "", nil, usagef("read the event: %v", err)
		}
		return flags.file, data, nil
	case flags.file == "-" || !isTerminal(a.stdin):
		if data, err = io.ReadAll(a.stdin); err != nil {
			return "", nil, fmt.Errorf("read the event from standard input: %w", err)
		}
		return "standard input", data, nil
	}
	return "the event", nil, nil
}

// printPayload writes the answer as it came; only a terminal gets a newline after it.
func (a *app) printPayload(payload []byte) error {
	if isTerminal(a.stdout) {
		payload = append(payload, '\n')
	}
	_, err := a.stdout.Write(payload)
	return err
}

func (a *app) printLogTail(tail []byte) {
	for line := range strings.Lines(string(tail)) {
		line = strings.TrimRight(line, "\r\n")
		if isTerminal(a.stderr) {
			line = visible(line)
		}
		fmt.Fprintln(a.stderr, line)
	}
}

// functionFailure is one sentence about a function error.
func functionFailure(name string, result *client.InvokeResult) string {
	var cause struct {
		Type    string `json:"errorType"`
		Message string `json:"errorMessage"`
	}
	_ = json.Unmarshal(result.Payload, &cause)
	s := name + " failed"
	if result.ExecutedVersion != "" {
		s += " (version " + result.ExecutedVersion + ")"
	}
	if what := strings.Trim(cause.Type+": "+cause.Message, ": "); what != "" {
		s += ": " + visible(what)
	}
	if result.RequestID != "" {
		s += ": `lfxctl logs " + name + " --request " + result.RequestID + "` shows its log"
	}
	return s
}

// invokeOutput is `lfxctl invoke -o json`.
type invokeOutput struct {
	Status          int    `json:"status"`
	FunctionError   string `json:"function_error,omitempty"`
	ExecutedVersion string `json:"executed_version,omitempty"`
	Release         string `json:"release,omitempty"`
	RequestID       string `json:"request_id,omitempty"`
	// Payload is the answer itself, or a string when the answer is not JSON.
	Payload any    `json:"payload"`
	Log     string `json:"log,omitempty"`
	// Record is there with --log when the call had to start an instance.
	Record *api.Record `json:"record,omitempty"`
}

func newInvokeOutput(r *client.InvokeResult, cold *api.Record) invokeOutput {
	out := invokeOutput{
		Status: r.Status, FunctionError: r.FunctionError, ExecutedVersion: r.ExecutedVersion,
		Release: r.Release, RequestID: r.RequestID, Log: string(r.LogTail), Record: cold,
	}
	switch {
	case len(r.Payload) == 0:
	case json.Valid(r.Payload):
		out.Payload = json.RawMessage(r.Payload)
	default:
		out.Payload = string(r.Payload)
	}
	return out
}
