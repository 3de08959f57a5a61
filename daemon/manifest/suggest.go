package manifest

import "strings"

// synonyms are keys of other tools, and what they are called here.
var synonyms = map[string]string{
	"args": "build.args", "cmd": "command", "context": "build.context", "cpus": "cpu", "directory": "build",
	"dockerfile": "build.dockerfile", "env": "environment", "envfile": "env_file", "environment_variables": "environment",
	"ephemeral_storage": "tmp", "handler": "command", "image_uri": "image", "lambdas": "functions", "max": "concurrency.max",
	"max_concurrency": "concurrency.max", "mem_limit": "memory", "memory_size": "memory", "memorysize": "memory",
	"min": "concurrency.min", "name": "project", "path": "build", "ports": "port", "reserved_concurrency": "concurrency.max",
	"services": "functions", "target": "build.target", "tmpfs": "tmp", "variables": "environment", "working_dir": "workdir",
	"working_directory": "workdir",
}

// suggest returns what was probably meant by key, as a question, or the list of keys.
func suggest(key string, keys []string) string {
	plain := strings.ToLower(strings.NewReplacer("-", "_", " ", "_").Replace(key))
	if s, ok := synonyms[plain]; ok {
		first, _, _ := strings.Cut(s, ".")
		for _, k := range keys {
			if k == first {
				return "did you mean " + s + "?"
			}
		}
	}
	best, least := "", 3
	for _, k := range keys {
		if n := distance(plain, k, least); n < least && n < len(k) {
			best, least = k, n
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "the keys here are " + strings.Join(keys, ", ")
}

// distance returns the Levenshtein distance of a and b, or limit when it is at least that.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return min(row[len(b)], limit)
}
