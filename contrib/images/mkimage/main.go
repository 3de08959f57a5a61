// Command mkimage packs a directory tree as an OCI image archive (an OCI layout in a tar file,
// as `ctr images import` reads it) whose bytes depend on the tree alone.
//
//	mkimage -out python.tar -ref localhost/lfx-base/python:3.11 -base TREE0 -tree TREE1 -config config.json
//
// Without -base the image has one layer, TREE1. With -base it has two: TREE0, and what TREE1
// adds to or changes in it; TREE1 must hold everything that TREE0 holds. Owners become root,
// times become SOURCE_DATE_EPOCH (required), set-user-ID bits go, everything becomes readable by
// everybody; device nodes, sockets and pipes are left out.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type options struct {
	out, ref   string // archive to write, reference name recorded in its index
	base, tree string // directories; base may be empty
	config     string // JSON file with an OCI image config's "config" object
	arch       string
	epoch      time.Time
}

func main() {
	var o options
	flag.StringVar(&o.out, "out", "", "archive to write")
	flag.StringVar(&o.ref, "ref", "", "full reference name of the image")
	flag.StringVar(&o.base, "base", "", "tree of the lower layer (optional)")
	flag.StringVar(&o.tree, "tree", "", "tree of the image")
	flag.StringVar(&o.config, "config", "", "JSON file with the image's config object")
	flag.StringVar(&o.arch, "arch", "amd64", "architecture, as Go spells it")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "mkimage: %v\n", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.out == "" || o.ref == "" || o.tree == "" || o.config == "" {
		return fmt.Errorf("-out, -ref, -tree and -config are required")
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH must be set to seconds since 1970: %w", err)
	}
	o.epoch = time.Unix(epoch, 0).UTC()
	cfg, err := readConfig(o.config)
	if err != nil {
		return err
	}
	layers, err := packLayers(o)
	if err != nil {
		return err
	}
	return writeArchive(o, cfg, layers)
}

// packLayers returns the image's layers, lowest first.
func packLayers(o options) ([]layer, error) {
	tree, err := scan(o.tree)
	if err != nil {
		return nil, err
	}
	if o.base == "" {
		l, err := packLayer(tree, tree.paths, o.epoch)
		return []layer{l}, err
	}
	base, err := scan(o.base)
	if err != nil {
		return nil, err
	}
	added, err := tree.over(base)
	if err != nil {
		return nil, err
	}
	lower, err := packLayer(base, base.paths, o.epoch)
	if err != nil {
		return nil, err
	}
	upper, err := packLayer(tree, added, o.epoch)
	return []layer{lower, upper}, err
}

// readConfig reads the image's config strictly: a misspelt key is an error, not a lost setting.
func readConfig(path string) (ocispec.ImageConfig, error) {
	var cfg ocispec.ImageConfig
	f, err := os.Open(path)
	if err != nil {
		return cfg, err
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return cfg, fmt.Errorf("read %s: %w", path, err)
	}
	return cfg, nil
}
