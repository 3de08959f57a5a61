package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const docsFile = "../../docs/lfxctl.md"

// TestDocs holds docs/lfxctl.md against the commands; -update writes it.
func TestDocs(t *testing.T) {
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, lookup: func(string) (string, bool) { return "", false }}
	want := reference(a.rootCommand())
	if *update {
		if err := os.WriteFile(docsFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/lfxctl.md differs from the commands: run go test ./cmd/lfxctl -update (-want +got):\n%s", diff)
	}
}

// Every command says what it does and shows how.
func TestEveryCommandHasAnExample(t *testing.T) {
	a := &app{stdout: io.Discard, stderr: io.Discard}
	all := a.rootCommand().Commands()
	for i := 0; i < len(all); i++ {
		cmd := all[i]
		all = append(all, cmd.Commands()...)
		if cmd.Short == "" || !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s has no description or no example of its own", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s has no description", cmd.CommandPath(), f.Name)
			}
		})
	}
}

// reference is docs/lfxctl.md.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# lfxctl\n\n<!-- Written by `go test ./cmd/lfxctl -update`: change the commands, not this file. -->\n\n")
	fmt.Fprintf(&b, "%s\n\n", root.Long)
	b.WriteString("| command | does |\n|---|---|\n")
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" {
			fmt.Fprintf(&b, "| [`lfxctl %s`](#lfxctl-%s) | %s |\n", cmd.Name(), cmd.Name(), cmd.Short)
		}
	}
	b.WriteString("\nFor every command:\n\n")
	writeFlags(&b, root.PersistentFlags())
	b.WriteString("| `-h`, `--help` | help for the command |\n")
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" {
			writeCommand(&b, cmd)
		}
	}
	return b.String()
}

func writeCommand(b *strings.Builder, cmd *cobra.Command) {
	description := cmd.Long
	if description == "" {
		description = cmd.Short + "."
	}
	level := strings.Repeat("#", len(strings.Fields(cmd.CommandPath())))
	use := cmd.Use
	if cmd.HasSubCommands() {
		use += " [command]"
	}
	fmt.Fprintf(b, "\n%s %s\n\n    %s %s\n\n%s\n\n", level, cmd.CommandPath(), cmd.Parent().CommandPath(), use, description)
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(b, "Also `%[1]s %[2]s`.\n\n", cmd.Parent().CommandPath(), strings.Join(cmd.Aliases, "`, `"+cmd.Parent().CommandPath()+" "))
	}
	fmt.Fprintf(b, "```sh\n%s\n```\n", unindent(cmd.Example))
	if cmd.Flags().HasFlags() {
		b.WriteString("\n")
		writeFlags(b, cmd.Flags())
	}
	for _, sub := range cmd.Commands() {
		writeCommand(b, sub)
	}
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| flag | meaning |\n|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		if kind := f.Value.Type(); kind != "bool" {
			name += " *" + kind + "*"
		}
		usage := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			usage += " (default `" + f.DefValue + "`)"
		}
		fmt.Fprintf(b, "| %s | %s |\n", name, strings.ReplaceAll(usage, "|", "\\|"))
	})
}

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
