// pullbench measures pulls in one run: a plain `curl | gunzip | tar x` of the same layers, cricket, and containerd, in
// turns. tests/bench-pull.sh has the node, the registry's configuration and containerd's.
//
//	pullbench image -out DIR      makes the layers from files of this machine, once
//	pullbench run -out DIR …      serves them on 127.0.0.1 and measures
package main

import (
	"flag"
	"fmt"
	"os"
)

type options struct {
	out, scratch              string
	port, rounds              int
	socket, state, log        string
	daemon                    int
	peer                      string
	undurable                 string
	peerPid                   int
	listSeconds, listInterval int
}

func main() {
	var o options
	flags := flag.NewFlagSet("pullbench", flag.ExitOnError)
	flags.StringVar(&o.out, "out", "", "folder of the layers")
	flags.StringVar(&o.scratch, "scratch", "", "folder for the registry and the plain unpacking (run)")
	flags.IntVar(&o.port, "port", 5010, "the registry's port on 127.0.0.1 (run)")
	flags.IntVar(&o.rounds, "rounds", 5, "measured rounds (run)")
	flags.StringVar(&o.socket, "socket", "", "cricket's socket, or the one to serve on (run, control)")
	flags.StringVar(&o.state, "state", "", "cricket's image folder (run)")
	flags.StringVar(&o.log, "log", "", "cricket's log in JSON, at debug level (run)")
	flags.IntVar(&o.daemon, "daemon", 0, "cricket's pid (run)")
	flags.StringVar(&o.peer, "peer", "", "containerd's socket, empty for none (run)")
	flags.IntVar(&o.peerPid, "peer-pid", 0, "containerd's pid (run)")
	flags.IntVar(&o.listSeconds, "list-seconds", 5, "length of the idle measurement of reads (run)")
	flags.IntVar(&o.listInterval, "list-interval", 2, "milliseconds between two reads (run)")
	flags.StringVar(&o.undurable, "undurable", "", "socket of a cricket for which nothing waits for the disk (run)")
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: pullbench image|run|control [flags], or pullbench undurable PROGRAM [argument...]")
		os.Exit(2)
	}
	if os.Args[1] == "undurable" {
		fmt.Fprintln(os.Stderr, "pullbench:", undurable(os.Args[2:])) // returns only with an error
		os.Exit(1)
	}
	_ = flags.Parse(os.Args[2:]) // exits by itself
	var err error
	switch os.Args[1] {
	case "image":
		_, err = layers(o.out)
	case "run":
		err = run(&o)
	case "control":
		err = serveControl(o.socket)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pullbench:", err)
		os.Exit(1)
	}
}
