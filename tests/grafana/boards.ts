// What Grafana's own types say of a board: the classic dashboard, with the options of each kind of panel.
import type { Dashboard, FieldConfig, FieldConfigSource, Panel, RowPanel } from '@grafana/schema';
import type * as plot from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type * as value from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';

// JSON has the values of enums and not their names.
type Plain<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${T}` extends `${infer N extends number}`
      ? N
      : T
    : T extends object
      ? { [K in keyof T]: Plain<T[K]> }
      : T;

type Field<Custom> = Omit<FieldConfig, 'custom'> & { custom?: Custom };
type Of<Kind extends string, Options, Custom> = Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
  id: number;
  title: string;
  type: Kind;
  options: Options;
  fieldConfig: Omit<FieldConfigSource, 'defaults'> & { defaults: Field<Custom> };
  targets: Target[];
};

// The query of the data source Prometheus, which @grafana/schema does not have.
interface Target {
  refId: string;
  datasource: { type: 'prometheus'; uid: string };
  expr: string;
  legendFormat: string;
  editorMode: 'code' | 'builder';
  range: boolean;
  instant: boolean;
}

type AnyPanel = RowPanel | Of<'timeseries', plot.Options, plot.FieldConfig> | Of<'stat', value.Options, never>;

export type Board = Plain<Omit<Dashboard, 'panels'> & { uid: string; panels: AnyPanel[] }>;
