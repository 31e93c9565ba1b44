// Draws a board with Grafana's own panels: what __main__.py has read from Prometheus is in window.BOARD.
// It is not Grafana: the layout is ours, and variables and queries are resolved already.
import 'uplot/dist/uPlot.min.css';
import {
  createTheme,
  dateTime,
  FieldType,
  getDisplayProcessor,
  toDataFrame,
  type DataFrame,
  type Field,
  type FieldConfig,
} from '@grafana/data';
import { BigValue, PanelChrome, ThemeContext, TimeSeries } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

interface Series {
  name: string;
  times: number[];
  values: Array<number | null>;
}
interface Panel {
  id: number;
  type: 'timeseries' | 'stat' | 'row';
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  fieldConfig?: { defaults: FieldConfig };
  options?: any;
  series: Series[];
}
interface Board {
  from: number;
  to: number;
  width: number;
  panels: Panel[];
}

const GAP = 8;
const CELL = 38;
const theme = createTheme({ colors: { mode: 'light' } });
const board: Board = (window as any).BOARD;

function frames(panel: Panel): DataFrame[] {
  return panel.series.map((series, index) => {
    const frame = toDataFrame({
      name: series.name,
      fields: [
        { name: 'Time', type: FieldType.time, config: {}, values: series.times },
        {
          name: series.name,
          type: FieldType.number,
          config: { ...panel.fieldConfig?.defaults, displayNameFromDS: series.name },
          values: series.values,
        },
      ],
    });
    frame.fields.forEach((field) => {
      field.state = { ...field.state, seriesIndex: index, displayName: field.type === FieldType.time ? 'Time' : series.name };
      field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    });
    return frame;
  });
}

function last(field: Field): number | null {
  const values = field.values.filter((value) => value !== null);
  return values.length ? values[values.length - 1] : null;
}

function Values({ panel, width, height }: { panel: Panel; width: number; height: number }) {
  const all = frames(panel);
  const each = width / Math.max(1, all.length);
  const onlyName = panel.options?.textMode === 'name';
  return (
    <div style={{ display: 'flex' }}>
      {all.map((frame, index) => {
        const field = frame.fields[1];
        const value = { ...field.display!(last(field)), title: panel.series[index].name };
        return (
          <BigValue
            key={index}
            theme={theme}
            width={each}
            height={height}
            value={onlyName ? { ...value, color: theme.colors.text.primary } : value}
            colorMode={'value' as any}
            graphMode={(onlyName ? 'none' : 'area') as any}
            textMode={(onlyName ? 'name' : all.length > 1 ? 'value_and_name' : 'value') as any}
            sparkline={onlyName ? undefined : { y: field, x: frame.fields[0], timeRange: range() } as any}
          />
        );
      })}
    </div>
  );
}

function range() {
  const [from, to] = [dateTime(board.from), dateTime(board.to)];
  return { from, to, raw: { from, to } };
}

function Content({ panel, width, height }: { panel: Panel; width: number; height: number }) {
  if (!panel.series.length) {
    return <div style={{ textAlign: 'center', paddingTop: height / 3 }}>{panel.fieldConfig?.defaults.noValue}</div>;
  }
  if (panel.type === 'stat') {
    return <Values panel={panel} width={width} height={height} />;
  }
  return (
    <TimeSeries
      frames={frames(panel)}
      width={width}
      height={height}
      timeRange={range()}
      timeZone="utc"
      legend={panel.options.legend}
    />
  );
}

function Drawn() {
  const column = board.width / 24;
  return (
    <ThemeContext.Provider value={theme}>
      {panelsInPlace().map(({ panel, place }) =>
        panel.type === 'row' ? (
          <div key={panel.id} style={{ position: 'absolute', ...place, fontWeight: 500, paddingTop: 8 }}>
            {panel.title}
          </div>
        ) : (
          <div key={panel.id} style={{ position: 'absolute', ...place }}>
            <PanelChrome title={panel.title} width={place.width} height={place.height}>
              {(width, height) => <Content panel={panel} width={width} height={height} />}
            </PanelChrome>
          </div>
        )
      )}
    </ThemeContext.Provider>
  );

  function panelsInPlace() {
    return board.panels.map((panel) => ({
      panel,
      place: {
        left: panel.gridPos.x * column + GAP / 2,
        top: panel.gridPos.y * CELL + GAP / 2,
        width: panel.gridPos.w * column - GAP,
        height: panel.gridPos.h * CELL - GAP,
      },
    }));
  }
}

document.body.style.fontFamily = theme.typography.fontFamily;
document.body.style.fontSize = '14px';
document.body.style.color = theme.colors.text.primary;
document.body.style.background = theme.colors.background.canvas;
createRoot(document.getElementById('board')!).render(<Drawn />);
