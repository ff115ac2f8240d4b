// com.launchdarkly:okhttp-eventsource: it reconnects by itself once it is told to go on after errors.

import com.launchdarkly.eventsource.ConnectStrategy;
import com.launchdarkly.eventsource.ErrorStrategy;
import com.launchdarkly.eventsource.EventSource;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.RetryDelayStrategy;
import com.launchdarkly.eventsource.StreamEvent;
import java.io.PrintStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;

class OkHttpEventSource {
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  public static void main(String[] arguments) {
    EventSource.Builder builder =
        new EventSource.Builder(ConnectStrategy.http(URI.create(arguments[0])))
            .errorStrategy(ErrorStrategy.alwaysContinue())
            // By default it waits twice as long each time that a stream has ended within a minute.
            .retryDelayStrategy(RetryDelayStrategy.defaultStrategy().backoffMultiplier(1));
    try (EventSource source = builder.build()) {
      for (StreamEvent each : source.anyEvents()) {
        if (each instanceof MessageEvent event) {
          told(event);
          // A 204 is an empty stream to it: it would ask for ever.
          if (event.getEventName().equals("msgpush.close")
              && event.getData().contains("\"reconnect\":false")) {
            OUT.println("{\"gave_up\": \"closed by the program\"}");
            return;
          }
        }
      }
    }
  }

  private static void told(MessageEvent event) {
    String id = event.getLastEventId() == null ? "" : event.getLastEventId();
    OUT.println(
        "{\"event\": " + quoted(event.getEventName()) + ", \"id\": " + quoted(id)
            + ", \"data\": " + quoted(event.getData()) + "}");
  }

  /** A string as JSON. What it is told is one line, so there are no control characters. */
  private static String quoted(String text) {
    return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\t", "\\t") + '"';
  }
}
