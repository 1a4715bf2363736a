// kubeletclient speaks the kubelet's streaming API as kubectl does, but to the kubelet itself: exec, attach and port-forward
// over SPDY/3.1 or WebSocket. The kubelet's certificate is not checked: it made it itself, and is asked over loopback.
//
//	kubeletclient exec [-protocol spdy|websocket] [-in] [-tty] URL COMMAND...   the exit code is the command's
//	kubeletclient attach [-protocol …] [-in] [-tty] URL                         until the streams end
//	kubeletclient forward [-protocol …] URL PORT                                prints the local address it listens on;
//	                                                                            ends when its standard input does
//
// URL is https://HOST:PORT/exec/NAMESPACE/POD/CONTAINER and so on. 125 is an error of ours or of the transport.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

// failed is the exit code that no command of the tests has.
const failed = 125

type options struct {
	protocol string
	in, tty  bool
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: kubeletclient exec|attach|forward [flags] URL [COMMAND...|PORT]"))
	}
	var opts options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&opts.protocol, "protocol", "spdy", "spdy or websocket")
	flags.BoolVar(&opts.in, "in", false, "hand standard input on")
	flags.BoolVar(&opts.tty, "tty", false, "ask for a terminal")
	if err := flags.Parse(os.Args[2:]); err != nil {
		fail(err)
	}
	if flags.NArg() == 0 {
		fail(errors.New("the URL is missing"))
	}
	target, err := url.Parse(flags.Arg(0))
	if err != nil {
		fail(err)
	}
	switch rest := flags.Args()[1:]; os.Args[1] {
	case "exec", "attach":
		err = stream(target, opts, rest)
	case "forward":
		if len(rest) != 1 {
			fail(errors.New("forward takes one port"))
		}
		err = forward(target, opts, rest[0])
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "kubeletclient:", err)
	os.Exit(failed)
}

func config(target *url.URL) *rest.Config {
	return &rest.Config{Host: target.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func stream(target *url.URL, opts options, command []string) error {
	query := url.Values{"command": command, "output": {"1"}}
	streams := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: opts.tty}
	if opts.in {
		query.Set("input", "1")
		streams.Stdin = os.Stdin
	}
	// A terminal has one output.
	if opts.tty {
		query.Set("tty", "1")
	} else {
		query.Set("error", "1")
		streams.Stderr = os.Stderr
	}
	target.RawQuery = query.Encode()
	var executor remotecommand.Executor
	var err error
	if opts.protocol == "websocket" {
		executor, err = remotecommand.NewWebSocketExecutor(config(target), http.MethodGet, target.String())
	} else {
		executor, err = remotecommand.NewSPDYExecutor(config(target), http.MethodPost, target)
	}
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), streams)
}

func forward(target *url.URL, opts options, port string) error {
	var dialer httpstream.Dialer
	if opts.protocol == "websocket" {
		tunnel, err := portforward.NewSPDYOverWebsocketDialer(target, config(target))
		if err != nil {
			return err
		}
		dialer = tunnel
	} else {
		transport, upgrader, err := spdy.RoundTripperFor(config(target))
		if err != nil {
			return err
		}
		dialer = spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	go func() {
		<-ready
		if ports, err := forwarder.GetPorts(); err == nil {
			fmt.Printf("127.0.0.1:%d\n", ports[0].Local)
		}
	}()
	return forwarder.ForwardPorts()
}
