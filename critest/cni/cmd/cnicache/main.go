// cnicache is another tool's view of the result cache: it finds an attachment there with libcni, and checks or deletes it
// with nothing but what the cache and the network's configuration say.
//
//	cnicache CACHE_DIR BIN_DIRS CONFLIST show|check|del CONTAINER_ID
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cnicache:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("usage: cnicache CACHE_DIR BIN_DIRS CONFLIST show|check|del CONTAINER_ID")
	}
	cni := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(args[1]), args[0], nil)
	list, err := libcni.NetworkConfFromFile(args[2])
	if err != nil {
		return err
	}
	found, err := cni.GetCachedAttachments(args[4])
	if err != nil {
		return err
	}
	if len(found) != 1 || found[0].Network != list.Name {
		return fmt.Errorf("%d attachments of %s to %s", len(found), args[4], list.Name)
	}
	one := found[0]
	runtime := &libcni.RuntimeConf{
		ContainerID:    one.ContainerID,
		NetNS:          one.NetNS,
		IfName:         one.IfName,
		Args:           one.CniArgs,
		CapabilityArgs: one.CapabilityArgs,
	}
	switch args[3] {
	case "show":
		result, err := cni.GetNetworkListCachedResult(list, runtime)
		if err != nil {
			return err
		}
		config, _, err := cni.GetNetworkListCachedConfig(list, runtime)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"attachment": one, "result": result, "config": string(config)})
	case "check":
		return cni.CheckNetworkList(context.Background(), list, runtime)
	case "del":
		return cni.DelNetworkList(context.Background(), list, runtime)
	}
	return fmt.Errorf("%s is neither show nor check nor del", args[3])
}
