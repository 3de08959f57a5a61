package worker

import "testing"

func TestInitText(t *testing.T) {
	for body, want := range map[string]string{
		`{"errorMessage":"no","errorType":"ValueError","stackTrace":["a"]}`: "ValueError: no",
		`{"errorMessage":"no"}`: "no",
		`{"errorType":"E"}`:     `{"errorType":"E"}`,
		`not json`:              "not json",
		`[]`:                    "[]",
	} {
		if got := initText([]byte(body)); got != want {
			t.Errorf("initText(%s) = %q, want %q", body, got, want)
		}
	}
}
