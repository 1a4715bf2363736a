// testimages makes the images of the test suites from Debian packages and serves them on a loopback port.
//
//	testimages build [-out DIR]              layouts, the registry's store and the quickstart layout
//	testimages serve -dir DIR [-out DIR]     runs docker-registry on that store until SIGTERM; DIR gets `address`
//	                                         and `registries.conf` once it answers
//	testimages conf -address HOST:PORT       prints that registries.conf
//	testimages list [-out DIR]               the names of all images
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"cricket/critest/internal/debs"
	"cricket/critest/internal/oci"
	"cricket/critest/internal/registry"
)

// The registry is tied to the life of the thread that starts it, so that must be the one that lives as long as we do.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: testimages build|serve|conf|list [flags]"))
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	out := flags.String("out", "images/out", "folder of the built images")
	programs := flags.String("programs", "bin", "folder with the static programs pause and nonewprivs (build)")
	dir := flags.String("dir", "", "folder for the registry's address, configuration and log (serve)")
	port := flags.Int("port", 0, "port to listen on, 0 for a free one (serve)")
	address := flags.String("address", "127.0.0.1:5000", "where the registry is (conf)")
	if err := flags.Parse(os.Args[2:]); err != nil {
		fail(err)
	}
	var err error
	switch os.Args[1] {
	case "build":
		err = build(*out, *programs)
	case "serve":
		err = serve(*out, *dir, *port)
	case "conf":
		_, err = fmt.Print(registry.Conf(*address))
	case "list":
		err = list(*out)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "testimages:", err)
	os.Exit(1)
}

func output(program string, args ...string) (string, error) {
	text, err := exec.Command(program, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return string(text), nil
}

// build makes everything, unless what is there was made by this very program from these very packages.
func build(out, programDir string) error {
	programs := map[string]string{"pause": filepath.Join(programDir, "pause"), "nonewprivs": filepath.Join(programDir, "nonewprivs")}
	wanted, err := debs.Resolve(packages)
	if err != nil {
		return err
	}
	key, err := cacheKey(wanted, programs)
	if err != nil {
		return err
	}
	stamp := filepath.Join(out, "key")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == key {
		fmt.Println("testimages: up to date in", out)
		return nil
	}
	for _, old := range []string{"key", "names", "layout", "registry", "quickstart"} {
		if err := os.RemoveAll(filepath.Join(out, old)); err != nil {
			return err
		}
	}
	found, err := debs.Unpack(filepath.Join(out, "debs"), wanted)
	if err != nil {
		return err
	}
	images, quickstart, err := catalogue(found, programs)
	if err != nil {
		return err
	}
	if err := store(out, images, quickstart); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(key), 0o644)
}

func store(out string, images []*oci.Image, quickstart *oci.Image) error {
	var all []*oci.Packed
	var names strings.Builder
	ids := map[string]string{}
	for _, image := range images {
		packed, err := image.Pack()
		if err != nil {
			return err
		}
		top := packed.Manifests[len(packed.Manifests)-1].Digest
		for _, blob := range packed.Blobs {
			if !strings.Contains(blob.MediaType, "config") && !strings.Contains(blob.MediaType, "container.image") {
				continue
			}
			if other, taken := ids[blob.Digest]; taken {
				return fmt.Errorf("%s and %s have the same config, so one id", other, packed.Names[0])
			}
			ids[blob.Digest] = packed.Names[0]
		}
		for _, name := range packed.Names {
			fmt.Fprintf(&names, "%s %s\n", name, top)
		}
		all = append(all, packed)
	}
	if err := oci.WriteLayout(filepath.Join(out, "layout"), all...); err != nil {
		return err
	}
	first, err := quickstart.Pack()
	if err != nil {
		return err
	}
	if err := oci.WriteLayout(filepath.Join(out, "quickstart"), first); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "testimages-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	absolute, err := filepath.Abs(filepath.Join(out, "registry"))
	if err != nil {
		return err
	}
	server, err := registry.Start(absolute, scratch, 0)
	if err != nil {
		return err
	}
	for _, packed := range all {
		if err := server.Push(packed); err != nil {
			return errors.Join(err, server.Stop())
		}
	}
	if err := server.Stop(); err != nil {
		return err
	}
	fmt.Printf("testimages: %d images under %d names in %s\n", len(all), strings.Count(names.String(), "\n"), out)
	return os.WriteFile(filepath.Join(out, "names"), []byte(names.String()), 0o644)
}

// cacheKey covers this program, the static programs and every package.
func cacheKey(wanted []debs.Package, programs map[string]string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, file := range []string{self, programs["pause"], programs["nonewprivs"]} {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %s\n", filepath.Base(file), oci.Digest(content))
	}
	for _, p := range wanted {
		fmt.Fprintf(sum, "%s %s\n", p.File, p.SHA256)
	}
	return hex.EncodeToString(sum.Sum(nil)) + "\n", nil
}

func serve(out, dir string, port int) error {
	if dir == "" {
		return errors.New("serve: -dir is missing")
	}
	storage, err := filepath.Abs(filepath.Join(out, "registry"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(out, "key")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds no finished build: run testimages build", out)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	server, err := registry.Start(storage, dir, port)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "registries.conf"), []byte(registry.Conf(server.Address)), 0o644); err != nil {
		return errors.Join(err, server.Stop())
	}
	// Its appearance says that the registry answers, so it must appear whole.
	part := filepath.Join(dir, "address.part")
	if err := os.WriteFile(part, []byte(server.Address+"\n"), 0o644); err != nil {
		return errors.Join(err, server.Stop())
	}
	if err := os.Rename(part, filepath.Join(dir, "address")); err != nil {
		return errors.Join(err, server.Stop())
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	select {
	case <-stop:
		return server.Stop()
	case err := <-ended:
		return fmt.Errorf("docker-registry ended: %w", err)
	}
}

func list(out string) error {
	names, err := os.ReadFile(filepath.Join(out, "names"))
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(names)
	return err
}
