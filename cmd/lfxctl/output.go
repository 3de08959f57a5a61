package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// colour is the ANSI attribute of a table cell or a line; the zero value is none.
type colour string

const (
	plain  colour = ""
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	dim    colour = "2"
)

// coloured says whether a stream takes colours: a terminal, and neither NO_COLOR (no-color.org) nor
// TERM=dumb is set.
func (a *app) coloured(stream io.Writer) bool {
	return isTerminal(stream) && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
}

func (a *app) paint(stream io.Writer, c colour, text string) string {
	if c == plain || text == "" || !a.coloured(stream) {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// cell is one field of a table.
type cell struct {
	text   string
	colour colour
}

func text(format string, args ...any) cell { return cell{text: fmt.Sprintf(format, args...)} }

// table is aligned text with a heading row.
type table struct {
	head []string
	rows [][]cell
}

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

// print writes the table to stdout, columns two blanks apart, nothing behind the last one.
func (a *app) print(t *table) {
	widths := make([]int, len(t.head))
	for i, h := range t.head {
		widths[i] = utf8.RuneCountInString(h)
	}
	for _, row := range t.rows {
		for i := range row {
			if row[i].text == "" {
				row[i].text = "-"
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{text: h}
	}
	a.printRow(head, widths)
	for _, row := range t.rows {
		a.printRow(row, widths)
	}
}

func (a *app) printRow(row []cell, widths []int) {
	var b strings.Builder
	for i, c := range row {
		if i > 0 {
			b.WriteString("  ")
		}
		b.WriteString(a.paint(a.stdout, c.colour, c.text))
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)))
		}
	}
	fmt.Fprintln(a.stdout, b.String())
}

// outputFlag is -o.
type outputFlag string

const (
	outputTable outputFlag = "table"
	outputJSON  outputFlag = "json"
)

// String, Set and Type implement pflag.Value.
func (o *outputFlag) String() string { return string(*o) }

// Set implements pflag.Value.
func (o *outputFlag) Set(s string) error {
	switch outputFlag(s) {
	case outputTable, outputJSON:
		*o = outputFlag(s)
		return nil
	}
	return fmt.Errorf("must be table or json")
}

// Type implements pflag.Value.
func (o *outputFlag) Type() string { return "format" }

func addOutputFlag(cmd *cobra.Command) *outputFlag {
	o := outputTable
	cmd.Flags().VarP(&o, "output", "o", "output format: table or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return &o
}

// printJSON writes v to stdout, indented, with a newline.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// list is s as JSON should show it: an empty list is [], not null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// ago is a time relative to now, as tables show it: "3m ago"; older than 60 days is a date.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := a.now().Sub(t)
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	case d < 60*24*time.Hour:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
	return t.Local().Format(time.DateOnly)
}

// age is how long ago a time was: "3m".
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	if s, relative := strings.CutSuffix(a.ago(t), " ago"); relative {
		return s
	}
	return shortDays(a.now().Sub(t))
}

func shortDays(d time.Duration) string {
	if d < time.Second {
		return "0s"
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// mebibytes is a size in bytes as MiB: "12.3MiB", "120MiB"; zero is not known.
func mebibytes(bytes int64) string {
	mib := float64(bytes) / (1 << 20)
	switch {
	case bytes == 0:
		return "-"
	case mib < 10:
		return fmt.Sprintf("%.1fMiB", mib)
	}
	return fmt.Sprintf("%.0fMiB", mib)
}

// memory is a size in MiB for people.
func memory(mib int) string {
	if mib >= 1024 && mib%1024 == 0 {
		return fmt.Sprintf("%dGiB", mib/1024)
	}
	return fmt.Sprintf("%dMiB", mib)
}

// count is "1 function", "3 functions".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// number is a number that is absent when zero.
func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// visible makes foreign text harmless on a terminal: control characters other than the tab become
// their \x form, so that a function's output cannot drive the reader's terminal.
func visible(s string) string {
	if strings.IndexFunc(s, hostile) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hostile(r) {
			fmt.Fprintf(&b, "\\x%02x", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func hostile(r rune) bool { return r != '\t' && (r < 0x20 || r >= 0x7f && r < 0xa0) }
