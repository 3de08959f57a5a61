// Command ps lists the containers of a containerd namespace as `nerdctl ps -a` does, by nerdctl's own
// code. The tests hold it against what lfxd runs. A module of its own: nerdctl's dependencies are
// nobody else's concern.
//
//	ps CONTAINERD-SOCKET NAMESPACE
package main

import (
	"context"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/nerdctl/v2/pkg/api/types"
	"github.com/containerd/nerdctl/v2/pkg/cmd/container"
)

func main() {
	if err := list(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func list(address, namespace string) error {
	c, err := containerd.New(address)
	if err != nil {
		return err
	}
	defer c.Close()                          //nolint:errcheck // nothing is left to do
	data, err := os.MkdirTemp("", "nerdctl") // nerdctl's own store, empty as on a host where it made nothing
	if err != nil {
		return err
	}
	defer os.RemoveAll(data) //nolint:errcheck // temporary
	global := types.GlobalCommandOptions{Address: address, Namespace: namespace, DataRoot: data}
	all, err := container.List(namespaces.WithNamespace(context.Background(), namespace), c,
		types.ContainerListOptions{GOptions: global, All: true, Truncate: true})
	if err != nil {
		return err
	}
	for _, i := range all {
		fmt.Printf("%s\t%s\t%s\t%s\t%s\n", i.ID, i.Image, i.Command, i.Status, i.Names)
	}
	return nil
}
