package buildkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/config"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
)

// Options configures a Client.
type Options struct {
	// DockerConfig is the directory of the config.json that holds registry credentials;
	// $DOCKER_CONFIG or ~/.docker when empty. It is read anew for every build.
	DockerConfig string
	// Remedy ends the error of a builder that does not answer, as in "systemctl start lfx-buildkitd".
	Remedy string
	// Log takes what is worth knowing and no error; nothing is logged when nil.
	Log *slog.Logger
}

// Client builds images through one buildkitd. It is safe for concurrent use.
//
// The connection is made when first needed and made again after buildkitd restarted; a build that
// was running then fails with class unavailable.
type Client struct {
	address string
	opts    Options
	bk      *bkclient.Client
}

// New returns a client of the buildkitd at the address ("unix:///run/…"). It does not connect.
func New(ctx context.Context, address string, opts Options) (*Client, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	bk, err := bkclient.New(ctx, address, bkclient.WithGRPCDialOption(grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
		MinConnectTimeout: 5 * time.Second,
	})))
	if err != nil {
		return nil, fmt.Errorf("use the builder at %s: %w", address, err)
	}
	return &Client{address: address, opts: opts, bk: bk}, nil
}

// Close ends the connection; running builds fail.
func (c *Client) Close() error { return c.bk.Close() }

// Info is what a buildkitd says of itself.
type Info struct {
	// Version is buildkitd's, as in "v0.34.2".
	Version string
	// Workers describes where builds run; there is one, unless the configuration adds others.
	Workers []Worker
}

// Worker is one of buildkitd's workers.
type Worker struct {
	ID string
	// Namespace is containerd's, where built images land; empty for other kinds of workers.
	Namespace string
	// Network is the mode of build steps: cni, host or none.
	Network string
}

// Info asks buildkitd what it is. It blocks for at most five seconds and returns an error of class
// unavailable when nothing answers.
func (c *Client) Info(ctx context.Context) (Info, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errNoAnswer)
	defer cancel()
	info, err := c.bk.Info(ctx)
	if err != nil {
		return Info{}, c.unavailable(ctx, err)
	}
	workers, err := c.bk.ListWorkers(ctx)
	if err != nil {
		return Info{}, c.unavailable(ctx, err)
	}
	out := Info{Version: info.BuildkitVersion.Version}
	for _, w := range workers {
		out.Workers = append(out.Workers, Worker{
			ID:        w.ID,
			Namespace: w.Labels["org.mobyproject.buildkit.worker.containerd.namespace"],
			Network:   w.Labels["org.mobyproject.buildkit.worker.network"],
		})
	}
	return out, nil
}

var errNoAnswer = errors.New("no answer in time")

// unavailable says where nothing answered and what to do; other errors pass as they are.
func (c *Client) unavailable(ctx context.Context, err error) error {
	if !errors.Is(context.Cause(ctx), errNoAnswer) && grpcerrors.Code(err) != codes.Unavailable {
		return err
	}
	remedy := c.opts.Remedy
	if remedy != "" {
		remedy = ": " + remedy
	}
	return fmt.Errorf("buildkitd is not answering on %s%s: %w", c.address, remedy, errdefs.ErrUnavailable)
}

// credentials offers the host's registry credentials to a build.
func (c *Client) credentials() (session.Attachable, error) {
	file, err := config.Load(c.dockerConfig())
	if err != nil {
		return nil, fmt.Errorf("read registry credentials from %s: %w", c.dockerConfig(), err)
	}
	return authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(file),
	}), nil
}

func (c *Client) dockerConfig() string {
	if c.opts.DockerConfig != "" {
		return c.opts.DockerConfig
	}
	return config.Dir()
}
