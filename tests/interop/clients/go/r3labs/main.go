// github.com/r3labs/sse: the end of a response ends it, so the program subscribes anew, itself.
package main

import (
	"encoding/json"
	"errors"
	"math/rand"
	"net/http"
	"os"
	"time"

	"github.com/r3labs/sse/v2"
	"gopkg.in/cenkalti/backoff.v1"

	"msgpush/interop/lines"
)

var errOver = errors.New("the answer is 204")

func main() {
	// By default it never gets past an event of 64 KiB.
	client := sse.NewClient(os.Args[1], sse.ClientMaxBufferSize(1<<20))
	client.ReconnectStrategy = &backoff.StopBackOff{}
	client.ResponseValidator = func(_ *sse.Client, response *http.Response) error {
		if response.StatusCode == http.StatusNoContent {
			return errOver
		}
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	}
	var retry time.Duration
	var cursor []byte
	for {
		err := client.SubscribeRaw(func(event *sse.Event) {
			if wait, err := time.ParseDuration(string(event.Retry) + "ms"); err == nil {
				retry = wait
			}
			// What a cut has left of an event comes as an event, too.
			if !json.Valid(event.Data) {
				return
			}
			cursor = event.ID
			lines.Told(string(event.Event), string(event.ID), string(event.Data))
		})
		if errors.Is(err, errOver) {
			lines.GaveUp(err)
			return
		}
		if cursor != nil {
			client.LastEventID.Store(cursor)
		}
		time.Sleep(retry + time.Duration(rand.Int63n(int64(time.Second))))
	}
}
